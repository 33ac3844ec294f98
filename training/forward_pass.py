"""How a batch of the data becomes the arguments of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, UsageError
from .device import Device

Pattern = Sequence[int | str]

_UNCOMMON = ("model_call", "create_random_model_inputs", "get_model_input_shapes")


@dataclass(frozen=True)
class TensorLike:
    """Shape of a tensor, without the batch dimension, and its type in its framework."""

    shape: tuple[int, ...]
    dtype: Any


class ForwardPass:
    """Takes the arguments of a model out of a batch, and calls the model with them.

    The pattern says, for each element of a batch, its position among the arguments, or ``'_'``
    where the model does not get it: ``(1, 0, '_', 2)`` makes ``model(b, a, d)`` out of a batch
    ``(a, b, c, d)``.

    Use the class of the framework (``TorchForwardPass``) where one of the defaults is used.

    Args:
        model_input_pattern: the pattern; None when :meth:`extract_model_inputs` is overridden.
        expecting_common_inputs: batches are tensors, or lists, tuples or dicts of tensors. When
            they are not, ``model_call``, ``create_random_model_inputs`` and
            ``get_model_input_shapes`` have to be overridden.

    Raises:
        UsageError: the pattern is no pattern, or a method that has no default is not overridden.
    """

    def __init__(
        self, model_input_pattern: Pattern | None = None, expecting_common_inputs: bool = True
    ) -> None:
        self.model_input_pattern = (
            None if model_input_pattern is None else _checked(model_input_pattern)
        )
        self.expecting_common_inputs = expecting_common_inputs
        self._seen: tuple[Any, ...] | None = None
        if self.model_input_pattern is None and not self._overrides("extract_model_inputs"):
            raise UsageError(
                f"{type(self).__name__}: there is neither a model_input_pattern nor an"
                " extract_model_inputs of its own; expected one of them",
                hint="model_input_pattern=(0, '_') calls model(x) with batches (x, y)",
            )
        if not expecting_common_inputs:
            missing = [name for name in _UNCOMMON if not self._overrides(name)]
            if missing:
                raise UsageError(
                    f"{type(self).__name__}: expecting_common_inputs is False, but"
                    f" {missing[0]} is not overridden",
                    hint=f"inputs that are not common need {', '.join(_UNCOMMON)}",
                )

    def model_call(self, model: Any, x: Any, device: str | Device) -> Any:
        """Call the model.

        Args:
            model: the model.
            x: what :meth:`extract_model_inputs` returned.
            device: where to call it.

        Returns:
            what the model returns.
        """
        moved = self._map(x, lambda leaf: self.to_device(leaf, device))
        if isinstance(moved, tuple):
            return model(*moved)
        return model(moved)

    def create_random_model_inputs(self, batch_size: int) -> Any:
        """Return random inputs that :meth:`model_call` takes, of the shapes that were seen.

        Raises:
            UsageError: no batch was seen yet.
        """
        return self._map(
            self._described(),
            lambda leaf: self.random_tensor((batch_size, *leaf.shape), leaf.dtype),
        )

    def extract_model_inputs(self, batch: Any) -> Any:
        """Return the arguments of the model, a tuple in their order.

        Raises:
            InputError: the structure of the batch does not fit the pattern.
        """
        pattern = self.model_input_pattern
        if pattern is None:
            raise UsageError(f"{type(self).__name__}: extract_model_inputs needs a pattern")
        elements = elements_of(batch, pattern)
        chosen = {
            int(position): elements[index]
            for index, position in enumerate(pattern)
            if position != "_"
        }
        arguments = tuple(chosen[position] for position in range(len(chosen)))
        if self.expecting_common_inputs and self._seen is None:
            self.see(arguments)
        return arguments

    def get_model_input_shapes(self) -> tuple[Any, ...]:
        """Return the shapes of all inputs of the model, without the batch dimension.

        Raises:
            UsageError: no batch was seen yet.
        """
        shapes: tuple[Any, ...] = self._map(self._described(), lambda leaf: leaf.shape)
        return shapes

    def extract_targets(self, batch: Any) -> Any:
        """Return what the loss compares with: the first element that the model does not get.

        Without a pattern it is the last element.

        Raises:
            InputError: the batch has none.
        """
        pattern = self.model_input_pattern
        if pattern is None:
            if isinstance(batch, list | tuple) and len(batch) > 1:
                return batch[-1]
            raise InputError(
                f"a batch is {structure(batch)}; expected a list or tuple with the targets last"
            )
        elements = elements_of(batch, pattern)
        if "_" not in pattern:
            raise InputError(
                f"model_input_pattern {list(pattern)} leaves out no element of a batch; expected"
                " '_' where the targets stand"
            )
        return elements[list(pattern).index("_")]

    def see(self, arguments: Any) -> None:
        """Remember shapes and types of the arguments of a batch, for what needs them.

        Raises:
            InputError: they are not common: tensors, or lists, tuples or dicts of tensors.
        """
        self._seen = self._map(arguments, self.describe)

    def to_device(self, leaf: Any, device: str | Device) -> Any:
        """Return one tensor on the device."""
        raise self._of_framework("model_call")

    def random_tensor(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return one random tensor."""
        raise self._of_framework("create_random_model_inputs")

    def describe(self, leaf: Any) -> TensorLike:
        """Return shape, without the batch dimension, and type of one tensor."""
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if shape is None or dtype is None or len(shape) == 0:
            raise InputError(
                f"a batch holds {structure(leaf)}; expected a tensor, or lists, tuples or dicts of"
                " tensors",
                hint="override the methods of ForwardPass, with expecting_common_inputs=False",
            )
        return TensorLike(tuple(int(size) for size in shape[1:]), dtype)

    def _described(self) -> Any:
        if self._seen is None:
            raise UsageError(
                f"{type(self).__name__}: the shapes of the inputs are unknown, as no batch was"
                " seen yet",
                hint="call extract_model_inputs(batch) first, or override get_model_input_shapes",
            )
        return self._seen

    def _map(self, value: Any, function: Callable[[Any], Any]) -> Any:
        """Apply a function to every tensor of nested containers."""
        if isinstance(value, dict):
            return {name: self._map(child, function) for name, child in value.items()}
        if isinstance(value, tuple | list):
            items = [self._map(child, function) for child in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return function(value)

    def _overrides(self, name: str) -> bool:
        for kind in type(self).__mro__:
            if name in vars(kind):
                return not kind.__module__.startswith(__package__ + ".")
        return False

    def _of_framework(self, name: str) -> UsageError:
        return UsageError(
            f"{type(self).__name__}: {name} has no default in ForwardPass itself",
            hint="derive from the class of the framework, such as TorchForwardPass",
        )


def _checked(pattern: Pattern) -> tuple[int | str, ...]:
    items = (pattern,) if isinstance(pattern, int | str) else tuple(pattern)
    positions = [item for item in items if item != "_"]
    if not positions or sorted(positions, key=str) != sorted(range(len(positions)), key=str):
        raise UsageError(
            f"model_input_pattern: found {list(items)}; expected every argument position from 0 on"
            " once, and '_' elsewhere"
        )
    return items


def elements_of(batch: Any, pattern: Sequence[int | str]) -> Sequence[Any]:
    """Return the elements of a batch, as many as the pattern has.

    Raises:
        InputError: it is no list or tuple, or has another number of elements.
    """
    if not isinstance(batch, list | tuple) or len(batch) != len(pattern):
        raise InputError(
            f"a batch is {structure(batch)}, which does not fit model_input_pattern"
            f" {list(pattern)}; expected a list or tuple of {len(pattern)}",
            hint="forward_pass.model_input_pattern has an entry for each element of a batch",
        )
    return batch


def structure(value: Any) -> str:
    """Describe a batch, or an element of one, in a few words."""
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return f"a {kind} of {len(value)}"
    if isinstance(value, dict):
        names = ", ".join(repr(name) for name in list(value)[:5])
        return f"a dict with the keys {names or 'none'}"
    shape = getattr(value, "shape", None)
    return f"a {kind}" if shape is None else f"a {kind} of shape {tuple(shape)}"
