"""Integer weights: symmetric, one scale an output channel, packed as ONNX stores them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ModelError, UsageError

Array = np.ndarray[Any, Any]

_FRACTIONS = np.geomspace(0.1, 1.0, 24, dtype=np.float32)
"""Parts of a channel's largest magnitude that are tried as the end of the integer range."""
_REFINEMENTS = 8


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers and scales; the zero point is 0.

    Attributes:
        values: int8, of the weight's shape, within -2^(bits-1) .. 2^(bits-1)-1.
        scale: float32, (output channels,), positive.
        bits: 2, 4 or 8.
    """

    values: Array
    scale: Array
    bits: int


def quantize_weight(
    weight: Array, bits: int, channel_axis: int, *, reduce_range: bool = False
) -> QuantizedWeight:
    """Round a weight to integers, with the scale of each output channel.

    8 bits: the largest magnitude of a channel becomes 127 (64 with a reduced range). Fewer: the
    scale of the least squared error, out of a grid, then by turns the best integers for the scale
    and the best scale for the integers (Lloyd 1982, "Least squares quantization in PCM", restricted
    to equal steps), which never raises the error.

    Args:
        weight: float.
        bits: 2, 4 or 8.
        channel_axis: of the output channels.
        reduce_range: 8 bits become 7, whose products do not saturate the 16-bit sums of processors
            without VNNI.

    Raises:
        UsageError: ``bits`` is none of them.
        ModelError: the weight holds NaN or infinity.
    """
    if bits not in (2, 4, 8):
        raise UsageError(f"integer weights of {bits} bits: expected 2, 4 or 8")
    if not np.isfinite(weight).all():
        raise ModelError("a weight holds NaN or infinity, and cannot be quantized")
    rows = _rows(weight, channel_axis)
    largest = np.abs(rows).max(axis=1, initial=0)
    # A channel of zeros: any scale does, and 1 is one that no product with it can underflow.
    largest[largest < np.finfo(np.float32).tiny * 1024] = 0
    if bits == 8:
        limit = 64 if reduce_range else 127
        low, high = -limit, limit
        scale = largest / limit
    else:
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        scale = _least_error_scale(rows, largest, low, high)
    scale = np.where(largest > 0, scale, 1).astype(np.float32)
    values = np.clip(np.rint(rows / scale[:, None]), low, high).astype(np.int8)
    return QuantizedWeight(_unrolled(values, weight.shape, channel_axis), scale, bits)


def rescaled(weight: QuantizedWeight, scale: Array, channel_axis: int) -> QuantizedWeight:
    """Return the nearest integers for other scales; channels whose scale stays keep theirs."""
    factor = np.where(scale == weight.scale, 1, weight.scale / scale).astype(np.float32)
    rows = _rows(weight.values, channel_axis) * factor[:, None]
    values = np.rint(rows).astype(np.int8)
    values = _unrolled(values, weight.values.shape, channel_axis)
    return QuantizedWeight(values, scale.astype(np.float32), weight.bits)


def dequantize(weight: QuantizedWeight, channel_axis: int) -> Array:
    """Return the float32 weight that the integers stand for."""
    shape = [1] * weight.values.ndim
    shape[channel_axis] = -1
    return weight.values.astype(np.float32) * weight.scale.reshape(shape)


def integer_tensor(name: str, values: Array, bits: int) -> Any:
    """Return integers as an ONNX tensor of INT8, INT4 or INT2, the latter packed into bytes.

    Elements of 4 and 2 bits lie in a byte from its lowest bits upwards, as "TensorProto.raw_data"
    in onnx.proto says.
    """
    import ml_dtypes
    from onnx import numpy_helper

    types = {8: np.int8, 4: ml_dtypes.int4, 2: ml_dtypes.int2}
    return numpy_helper.from_array(np.ascontiguousarray(values).astype(types[bits]), name)


def _least_error_scale(rows: Array, largest: Array, low: int, high: int) -> Array:
    """Return the scale of each row; see :func:`quantize_weight`."""
    unit = np.where(largest > 0, largest, 1) / high
    best = unit.copy()
    least = np.full(len(rows), np.inf)
    for fraction in _FRACTIONS:
        scale = unit * fraction
        error = _errors(rows, _integers(rows, scale, low, high), scale)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    for _ in range(_REFINEMENTS):
        values = _integers(rows, best, low, high)
        energy = np.einsum("ij,ij->i", values, values)
        fitted = np.einsum("ij,ij->i", rows, values) / np.maximum(energy, 1)
        scale = np.where((energy > 0) & (fitted > 0), fitted, best)
        error = _errors(rows, _integers(rows, scale, low, high), scale)
        better = error < least
        if not better.any():
            break
        best[better], least[better] = scale[better], error[better]
    return best


def _integers(rows: Array, scale: Array, low: int, high: int) -> Array:
    values = rows / scale[:, None]
    np.rint(values, out=values)
    return np.clip(values, low, high, out=values)


def _errors(rows: Array, values: Array, scale: Array) -> Array:
    difference = values * scale[:, None]
    difference -= rows
    return np.einsum("ij,ij->i", difference, difference)


def _rows(weight: Array, channel_axis: int) -> Array:
    """Return a weight as (output channels, everything else), float32."""
    moved = np.moveaxis(np.asarray(weight, dtype=np.float32), channel_axis, 0)
    return np.ascontiguousarray(moved.reshape(moved.shape[0], -1))


def _unrolled(rows: Array, shape: tuple[int, ...], channel_axis: int) -> Array:
    moved = (
        shape[channel_axis],
        *(size for axis, size in enumerate(shape) if axis != channel_axis),
    )
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, channel_axis))
