"""The layout of images: inputters make channels first, and networks of Keras take them last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .inputter import Array

Shape = Sequence[int | str | None]


class ChannelsLast:
    """Turns images ``(batch, channels, height, width)`` into ``(batch, height, width, channels)``.

    The declared input decides: where only channels first fit it, images stay as they are. Arrays
    of other than four dimensions (labels, masks) always do.

    Args:
        shapes: of the inputs, as the spec declares them; symbols and None fit any size.
        label: what messages call the spec.
    """

    def __init__(self, shapes: Sequence[Shape | None], label: str) -> None:
        self.declared = next(
            (tuple(shape[1:]) for shape in shapes if shape and len(shape) == 4), ()
        )
        self.label = label

    def __call__(self, array: Array) -> Array:
        if array.ndim != 4:
            return array
        _, channels, height, width = array.shape
        if not self.declared or _fits(self.declared, (height, width, channels)):
            return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        if _fits(self.declared, (channels, height, width)):
            return array
        expected = ", ".join("any" if size is None else str(size) for size in self.declared)
        raise InputError(
            f"{self.label}: the data has images of {channels} channels and {height}x{width} pixels;"
            f" the spec declares inputs of (batch, {expected})",
            hint=f"a network of Keras takes (batch, {height}, {width}, {channels})",
        )


def _fits(declared: Shape, found: Sequence[int]) -> bool:
    return all(
        not isinstance(size, int) or size == other
        for size, other in zip(declared, found, strict=True)
    )
