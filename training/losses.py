"""The interface of losses: a model and a batch in, a scalar to minimise out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .device import Device
from .forward_pass import structure


class LossFunction(ABC):
    """What training minimises.

    Args:
        device: where it is computed, ``Device.CPU`` or ``Device.GPU``.
    """

    def __init__(self, device: str | Device = Device.CPU) -> None:
        self._device: str | Device = device
        self.to_device(device)

    def to_device(self, device: str | Device) -> None:
        """Move to another device; a loss that holds tensors moves them here."""
        self._device = device

    @property
    def device(self) -> str | Device:
        """Where it is computed."""
        return self._device

    @abstractmethod
    def __call__(self, model: Any, batch: Any) -> Any:
        """Return a scalar tensor, or a dict of scalar tensors, whose sum is minimised.

        Args:
            model: the network, called as the user's own code would call it.
            batch: what the data yields.
        """


def loss_parts(returned: Any, name: str = "loss") -> dict[str, Any]:
    """Return what a loss returned, as scalars by name.

    Raises:
        InputError: it is neither a scalar nor a dict of scalars.
    """
    parts = dict(returned) if isinstance(returned, Mapping) else {name: returned}
    for key, value in parts.items():
        shape = getattr(value, "shape", None)
        if shape is None or len(shape) > 1 or (len(shape) == 1 and shape[0] != 1):
            found = type(value).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"
            raise InputError(
                f"the loss returned {found} for {key!r}; expected a scalar tensor, or a dict of"
                " them"
            )
    if not parts:
        raise InputError("the loss returned an empty dict; expected a scalar tensor in it")
    return parts


def label_error(
    place: list[int], found: int, classes: int, first: int | None, ignored: int | None
) -> InputError:
    """Return the error of a label out of range.

    Args:
        place: index of the label in its batch.
        found: it.
        classes: how many there are.
        first: number of the first sample in its split; None where that is not known.
        ignored: a label that does not count.
    """
    beside = "" if ignored is None or 0 <= ignored < classes else f", or {ignored} for none"
    pixel = f", pixel {place[1:]}" if len(place) > 1 else ""
    where = f"sample {place[0]} of a batch" if first is None else f"sample {first + place[0]}"
    return InputError(f"{where}{pixel}: found the label {found}; expected 0..{classes - 1}{beside}")


def only_tensor(outputs: Any) -> Any:
    """Return the one tensor that a model returned, bare or in a list, tuple or dict.

    Raises:
        InputError: it returned several.
    """
    found = outputs
    if isinstance(found, dict) and len(found) == 1:
        found = next(iter(found.values()))
    if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0]
    if not hasattr(found, "shape"):
        raise InputError(
            f"the model returned {structure(outputs)}; expected one tensor",
            hint="give a loss and an evaluation of your own (module:attribute)",
        )
    return found
