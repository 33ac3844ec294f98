"""The tensors that a spec declares, compared with those that training gives a network and gets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError
from ..frameworks.calling import takes_keywords
from ..runtime.sources import spec_label
from ..specs import ModelSpec
from ..specs.tensors import TensorSpec, format_shape


@dataclass(frozen=True)
class DeclaredTensors:
    """What a spec says of inputs and outputs.

    The first dimension is not compared, as training has batches of its own size. Symbols and None
    fit any size.

    Attributes:
        inputs: in order; empty when the spec does not say.
        outputs: likewise.
        label: what messages call the spec.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    label: str | None = None

    @classmethod
    def of(cls, spec: ModelSpec) -> DeclaredTensors:
        """Read them off a spec.

        A forward pass of the user's own may give the network something else than it declares.
        """
        has_own = spec.forward_pass.name is not None
        return cls(() if has_own else spec.inputs or (), spec.outputs or (), spec_label(spec))

    def require_inputs(self, tensors: Mapping[str, Any]) -> None:
        """Check what a network gets.

        Args:
            tensors: by name; what has no shape is not looked at.

        Raises:
            SpecError: a tensor has another shape than the spec says.
        """
        self._require("inputs", self.inputs, tensors, "in the data")

    def require_outputs(self, returned: Any) -> None:
        """Check what a network returned: a tensor, several in their order, or a dict of them.

        Where there are more or fewer than the spec says, as of networks that return something else
        while they train, they are not looked at.

        Raises:
            SpecError: a tensor has another shape than the spec says.
        """
        names = [spec.name for spec in self.outputs]
        if isinstance(returned, Mapping):
            found = dict(returned)
        else:
            values = returned if isinstance(returned, list | tuple) else [returned]
            found = dict(zip(names, values, strict=True)) if len(values) == len(names) else {}
        self._require("outputs", self.outputs, found, "from the network")

    def _require(
        self, kind: str, specs: Sequence[TensorSpec], tensors: Mapping[str, Any], where: str
    ) -> None:
        for index, spec in enumerate(specs):
            found = _shape_of(tensors.get(spec.name))
            if found is None or spec.shape is None or _fits(spec.shape, found):
                continue
            raise SpecError(
                f"tensor {spec.name!r}: found the shape {format_shape(found)} {where}; expected"
                f" {format_shape(spec.shape)}",
                file=self.label,
                key=f"{kind}[{index}].shape",
            )


def named_inputs(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """Return the arguments of a network by the names of inputs.

    Args:
        function: the network's function, whose parameters may have those names; arguments without
            a name are in the order of the inputs where they have others.
        args: arguments without a name.
        kwargs: those with one.
        names: of the inputs, in order.
    """
    if takes_keywords(function, names):
        try:
            bound = inspect.signature(function).bind(*args, **kwargs).arguments
        except TypeError:  # which the call itself will tell
            return {}
        if set(names) & bound.keys():
            return {name: bound[name] for name in names if name in bound}
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _shape_of(tensor: Any) -> tuple[int | None, ...] | None:
    """Return sizes, None for one that is not known; None for what is no tensor."""
    shape = getattr(tensor, "shape", None)
    # TensorFlow has tensors of which not even the number of dimensions is known.
    if shape is None or getattr(shape, "rank", 0) is None:
        return None
    return tuple(None if size is None else int(size) for size in shape)


def _fits(declared: Sequence[int | str | None], found: Sequence[int | None]) -> bool:
    return len(declared) == len(found) and all(
        not isinstance(size, int) or other is None or size == other
        for size, other in list(zip(declared, found, strict=True))[1:]
    )
