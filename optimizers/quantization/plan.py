"""Which precision a layer gets, and what its weights take in a file then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import UsageError

if TYPE_CHECKING:
    from .layers import QuantLayer

WEIGHT_BITS = (2, 4, 8, 16, 32)
"""Bits of a weight: integers up to 8, float16, float32."""
ACTIVATION_BITS = (8, 32)
"""Bits of an activation: uint8, float32."""


@dataclass(frozen=True, order=True)
class Precision:
    """The types of a layer's weights and activations.

    Attributes:
        weight: bits of the weights: 2, 4 or 8 (integers), 16 (float16), 32 (float32).
        activation: 8: what goes into the layer, and comes out of it, is quantized to uint8;
            32: it stays float32.

    Raises:
        UsageError: there is no such number of bits, or they do not go together: with float
            weights there is no integer kernel, so uint8 activations would only cost accuracy.
    """

    weight: int
    activation: int = 32

    def __post_init__(self) -> None:
        if self.weight not in WEIGHT_BITS:
            raise UsageError(
                f"weights of {self.weight} bits: expected one of {_listed(WEIGHT_BITS)}"
            )
        if self.activation not in ACTIVATION_BITS:
            raise UsageError(
                f"activations of {self.activation} bits: expected one of {_listed(ACTIVATION_BITS)}"
            )
        if self.activation == 8 and self.weight > 8:
            raise UsageError(
                f"weights of {self.weight} bits with activations of 8 bits: expected weights of 2,"
                " 4 or 8 bits",
                hint=f"with activations of 32 bits, weights may have {self.weight}",
            )

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized to integers."""
        return self.weight > 8

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


Plan = Mapping[str, Precision]
"""Precisions by the name of the layer; a layer that is not in it stays float32."""

FLOAT = Precision(32)
INT8 = Precision(8, 8)


def weight_bytes(layer: QuantLayer, precision: Precision) -> int:
    """Return the bytes that a layer's weight takes in an ONNX file, with its scales."""
    packed = -(-layer.parameters * precision.weight // 8)
    scales = 4 * layer.shape[layer.channel_axis] if not precision.is_float else 0
    return packed + scales


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
