"""Ranges of the activations, from one pass over calibration batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, ModelError, UsageError
from ...frameworks.base import first_line
from ...frameworks.onnx import import_onnxruntime
from .layers import QuantLayer, quantizable_layers
from .plan import INT8
from .regions import effective, regions

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]
Batch = Mapping[str, Array]

METHODS = ("minmax", "entropy", "percentile")

_BINS = 2048
"""Of a histogram. TensorRT's calibration has as many."""
_LEVELS = 256
_STRIDE = 8
"""Bins from one candidate for a range to the next."""
_SMALL = 1e-9
_PERCENTILE = 99.99
"""Share of the values that stays within the range: the best of those compared by Wu et al. 2020,
"Integer quantization for deep learning inference", arXiv:2004.09602, over their networks."""
_LARGEST_RUN = 256 << 20
"""Bytes of activations that one run may return."""


@dataclass(frozen=True)
class Ranges:
    """Ranges of the activations by one calibration method, good for any plan.

    Attributes:
        method: ``minmax``, ``entropy`` or ``percentile``.
        limits: the smallest and the largest value, by tensor.
        means: the mean of each channel of a layer's input, (input channels,), by layer.
    """

    method: str
    limits: Mapping[str, tuple[float, float]]
    means: Mapping[str, Array] = field(repr=False, default_factory=dict)

    def scale(self, tensor: str) -> float:
        """Return the step of a tensor's uint8 type, whose range always includes 0."""
        low, high = self.limits[tensor]
        return (max(high, 0.0) - min(low, 0.0)) / 255


def calibrate(
    model: onnx.ModelProto,
    batches: Sequence[Batch],
    methods: Sequence[str] = METHODS,
    layers: Sequence[QuantLayer] | None = None,
    *,
    threads: int = 1,
) -> dict[str, Ranges]:
    """Run a prepared model once over the batches, and derive the ranges of every method.

    ``minmax`` takes the extremes. ``percentile`` leaves 0.01 % of the values outside. ``entropy``
    takes the range whose histogram loses least when it is quantized, by the Kullback-Leibler
    divergence (Migacz 2017, "8-bit inference with TensorRT", NVIDIA GTC). Memory does not grow with
    the batches. ONNX Runtime's own calibrators are not used: they keep the activations of all
    batches, run once a method, and take a second a tensor for the entropy.

    Args:
        model: see :func:`.prepare.prepare`.
        batches: arrays by the names of the inputs; labels are not needed.
        methods: of :data:`METHODS`.
        layers: those that may be quantized; without them, all.
        threads: of ONNX Runtime.

    Raises:
        InputError: there is no batch, one holds NaN or infinity, or does not fit the model.
        ModelError: an activation is NaN or infinite.
        UsageError: there is no such method.
    """
    for method in methods:
        if method not in METHODS:
            raise UsageError(f"calibration method {method!r}: expected one of {', '.join(METHODS)}")
    if layers is None:
        layers = quantizable_layers(model)
    seeds = [layer for layer in layers if effective(layer, INT8, model).activation == 8]
    tensors = regions(model, seeds).tensors
    sources = {node.name: node.input[0] for node in model.graph.node if node.input}
    inputs = {layer.name: sources[layer.node] for layer in layers}
    observers = {name: _Observer(set(methods) != {"minmax"}) for name in tensors}
    means = {name: _ChannelMean() for name in inputs}
    axes = {layer.name: 1 if layer.op_type.startswith("Conv") else -1 for layer in layers}
    for number, values in _activations(model, batches, {*tensors, *inputs.values()}, threads):
        for name, observer in observers.items():
            observer.add(values[name], name, number)
        for name, mean in means.items():
            mean.add(values[inputs[name]], axes[name])
    collected = {name: mean.value for name, mean in means.items()}
    return {method: Ranges(method, _limits(method, observers), collected) for method in methods}


def check_batches(batches: Sequence[Batch]) -> None:
    """Refuse what cannot be calibrated with.

    Raises:
        InputError: there is no batch, or one holds NaN or infinity.
    """
    if not batches:
        raise InputError(
            "there is no calibration data: 0 batches; expected at least one",
            hint="quantized activations need typical inputs: give data, or quantize weights only",
        )
    for number, batch in enumerate(batches):
        for name, array in sorted(batch.items()):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = int(array.size - np.isfinite(array).sum())
                raise InputError(
                    f"calibration batch {number}: {name}: {bad} of {array.size} values are NaN or"
                    " infinite; expected finite numbers"
                )


def open_session(model: onnx.ModelProto, threads: int = 1) -> Any:
    """Open a model in memory in ONNX Runtime.

    Raises:
        ModelError: it does not open it.
    """
    runtime = import_onnxruntime()
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # Or a product with packed weights would round its input to 8 bits.
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        return runtime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime {runtime.__version__} cannot open the model: {first_line(error)}"
        ) from error


def _activations(
    model: onnx.ModelProto, batches: Sequence[Batch], tensors: set[str], threads: int
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Run the batches, in parts that keep within bounds, and return tensors with each part."""
    check_batches(batches)
    augmented = type(model)()
    augmented.CopyFrom(model)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    infos = {value.name: value for value in model.graph.value_info}
    augmented.graph.output.extend(infos[name] for name in sorted(tensors - known))
    session = open_session(augmented, threads)
    axes = {value.name: value.shape[:1] for value in session.get_inputs()}
    wanted = sorted(tensors - set(axes))
    # Until the size of a sample is known, one at a time.
    step = 1
    for number, batch in enumerate(batches):
        missing = [name for name in axes if name not in batch]
        if missing:
            raise InputError(
                f"calibration batch {number}: has no array {missing[0]!r}; found"
                f" {', '.join(sorted(batch)) or 'none'}"
            )
        feeds = {name: np.asarray(batch[name]) for name in axes}
        length = _length(feeds, axes)
        start = 0
        while start < max(1, length):
            part = feeds
            if length:
                part = {name: array[start : start + step] for name, array in feeds.items()}
            try:
                values = dict(zip(wanted, session.run(wanted, part), strict=True))
            except Exception as error:
                raise InputError(
                    f"calibration batch {number}: the model cannot take it: {first_line(error)}"
                ) from error
            yield number, values | part
            start += step
            size = sum(array.nbytes for array in values.values()) // min(step, max(1, length))
            step = max(1, _LARGEST_RUN // max(1, size))


def _length(feeds: Mapping[str, Array], axes: Mapping[str, list[Any]]) -> int:
    """Return the samples of a batch that can be cut along its first axis, else 0."""
    lengths = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    symbols = {tuple(axis) for axis in axes.values()}
    free = len(symbols) == 1 and all(isinstance(axis, str) for axis in next(iter(symbols)))
    return lengths.pop() if len(lengths) == 1 and free else 0


class _Observer:
    """Extremes of a tensor, and a histogram over -limit .. limit of a fixed number of bins.

    When a value lies beyond the limit, the limit is doubled, and pairs of bins become one.
    """

    def __init__(self, with_histogram: bool) -> None:
        self.low = np.float32(np.inf)
        self.high = np.float32(-np.inf)
        self.limit = 0.0
        self.histogram = np.zeros(_BINS, np.int64) if with_histogram else None

    def add(self, values: Array, name: str, number: int) -> None:
        if not values.size:
            return
        low, high = values.min(), values.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError(
                f"calibration batch {number}: the activation {name} is NaN or infinite",
                hint="the model overflows on this input: see whether it is scaled as in training",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.histogram is None:
            return
        largest = float(max(-low, high, 0.0))
        if self.limit == 0:
            # All values until now were 0.
            zeros, self.histogram[_BINS // 2] = int(self.histogram.sum()), 0
            self.limit = largest
            self.histogram[_BINS // 2] += zeros
        while self.limit < largest:
            self._double()
        if self.limit == 0:
            self.histogram[_BINS // 2] += values.size
            return
        places = values.ravel() * np.float32(_BINS / 2 / self.limit)
        places += np.float32(_BINS / 2)
        np.clip(places, 0, _BINS - 1, out=places)
        self.histogram += np.bincount(places.astype(np.int32), minlength=_BINS)

    def _double(self) -> None:
        assert self.histogram is not None
        quarter = _BINS // 4
        pairs = self.histogram.reshape(-1, 2).sum(axis=1)
        self.histogram = np.zeros(_BINS, np.int64)
        self.histogram[quarter : quarter + len(pairs)] = pairs
        self.limit *= 2


class _ChannelMean:
    def __init__(self) -> None:
        self.total: Array | None = None
        self.count = 0

    def add(self, values: Array, axis: int) -> None:
        axis %= values.ndim
        others = tuple(index for index in range(values.ndim) if index != axis)
        total = values.sum(axis=others, dtype=np.float64)
        self.total = total if self.total is None else self.total + total
        self.count += values.size // max(1, values.shape[axis])

    @property
    def value(self) -> Array:
        assert self.total is not None
        return self.total / max(1, self.count)


def _limits(method: str, observers: Mapping[str, _Observer]) -> dict[str, tuple[float, float]]:
    found = {}
    for name, item in observers.items():
        low, high = float(item.low), float(item.high)
        if item.histogram is not None and item.limit > 0 and method != "minmax":
            cut = _percentile if method == "percentile" else _entropy
            left, right = cut(item.histogram, low >= 0)
            step = 2 * item.limit / _BINS
            # An end of the histogram lies beyond the extremes, which are exact.
            low = max(low, (left - _BINS // 2) * step)
            high = min(high, (right - _BINS // 2) * step)
        found[name] = (low, high)
    return found


def _percentile(histogram: Array, is_positive: bool) -> tuple[int, int]:
    """Return the bins between which the share of the values lies; half of the rest on each side."""
    outside = histogram.sum() * (1 - _PERCENTILE / 100) / (1 if is_positive else 2)
    left = int(np.searchsorted(np.cumsum(histogram), outside, side="right"))
    right = _BINS - int(np.searchsorted(np.cumsum(histogram[::-1]), outside, side="right"))
    return (_BINS // 2 if is_positive else left), right


def _entropy(histogram: Array, is_positive: bool) -> tuple[int, int]:
    """Return the bins, as far from 0 on both sides, that lose least information in 8 bits.

    For every candidate, what lies outside is added to the outermost bins (P), what lies inside is
    merged to as many levels as the integers have, and spread over the bins again that are not empty
    (Q). The divergence of Q from P is least for the best one.
    """
    middle = _BINS // 2
    best, least = middle, np.inf
    if is_positive:
        # The zeros of a ReLU are exact whatever the range; counted, they would outweigh all else.
        histogram = histogram.copy()
        histogram[middle] = histogram[middle + 1]
    total = float(max(1, histogram.sum()))
    for half in range(_LEVELS if is_positive else _LEVELS // 2, middle + 1, _STRIDE):
        left, right = (middle if is_positive else middle - half), middle + half
        inside = histogram[left:right].astype(np.float64)
        clipped = inside.copy()
        clipped[0] += histogram[:left].sum()
        clipped[-1] += histogram[right:].sum()
        filled = clipped > 0
        starts = np.arange(_LEVELS) * len(inside) // _LEVELS
        sums = np.add.reduceat(inside, starts)
        counts = np.add.reduceat(filled.astype(np.float64), starts)
        widths = np.diff(starts, append=len(inside))
        spread = np.repeat(sums / np.maximum(counts, 1), widths)[filled]
        kept = clipped[filled]
        # Where all that P has was clipped, Q is empty: a little keeps the divergence finite.
        spread = np.maximum(spread, _SMALL * total)
        divergence = float(np.sum(kept * np.log(kept / total / (spread / spread.sum()))))
        if divergence < least:
            best, least = half, divergence
    return (middle if is_positive else middle - best), middle + best
