"""Compares two models layer by layer, and finds the first place where they part."""

from __future__ import annotations

import logging
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..frameworks import LoadOptions, Model, ModelSource, open_model
from ..frameworks.base import LayerOutput, first_line
from .child import call_in_child
from .exchange import pack_source, unpack_source
from .golden import restore_dtype

Array = np.ndarray[Any, Any]

_NHWC_TO_NCHW = (0, 3, 1, 2)
_NCHW_TO_NHWC = (0, 2, 3, 1)


@dataclass(frozen=True)
class LayerDifference:
    """How one layer of a model differs from its counterpart.

    Attributes:
        name: the layer in the first model.
        other: its counterpart in the second.
        kind: its type.
        shape: of its output.
        max_absolute: the largest absolute difference.
        relative: that, relative to the largest magnitude of the first; NaN counts as infinite.
        cosine: of the angle between both, as vectors.
        snr_db: signal-to-noise ratio, 10 log10(sum a² / sum (a - b)²) in dB; None when equal.
    """

    name: str
    other: str
    kind: str
    shape: tuple[int, ...]
    max_absolute: float
    relative: float
    cosine: float | None
    snr_db: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; infinities, which JSON lacks, become strings."""
        values = {**asdict(self), "shape": list(self.shape)}
        for key in ("max_absolute", "relative", "snr_db"):
            value = values[key]
            if value is not None and math.isinf(value):
                values[key] = "Infinity" if value > 0 else "-Infinity"
        return values


def compare_arrays(
    name: str, other: str, kind: str, first: Array, second: Array
) -> LayerDifference:
    """Compare two arrays of the same shape.

    What is infinite, or no number, in both (masked scores of attention) does not differ there.
    """
    left, right = (array.astype(np.float64).ravel() for array in (first, second))
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        noise = np.where(same, 0, left - right)
    left, right = (np.where(np.isfinite(side), side, 0) for side in (left, right))
    scale = float(np.abs(left).max(initial=0))
    largest = float(np.abs(noise).max(initial=0))
    if math.isnan(largest):
        largest = math.inf
    power = float(np.dot(noise, noise))
    signal = float(np.dot(left, left))
    lengths = math.sqrt(signal) * float(np.linalg.norm(right))
    snr = None
    if power:
        snr = 10 * math.log10(signal / power) if signal and math.isfinite(power) else -math.inf
    return LayerDifference(
        name,
        other,
        kind,
        first.shape,
        largest,
        largest / scale if scale else largest,
        float(np.dot(left, right)) / lengths if lengths and math.isfinite(power) else None,
        snr,
    )


def compare_layers(
    first: Sequence[LayerOutput], second: Sequence[LayerOutput]
) -> list[LayerDifference]:
    """Compare the layers that both models have, in the order of the first."""
    return [
        compare_arrays(one.name, other.name, one.kind, one.array, array)
        for one, other, array in match_layers(first, second)
    ]


def match_layers(
    first: Sequence[LayerOutput], second: Sequence[LayerOutput]
) -> list[tuple[LayerOutput, LayerOutput, Array]]:
    """Pair layers by name, or by a scope that one of them has; only of one shape.

    A BatchNorm that follows a layer and has no counterpart was folded into it: then its output is
    what that layer's counterpart returns. Images may be NCHW in one model and NHWC in the other.

    Returns:
        the layers of the first model, their counterparts, and the arrays of these in the order of
        axes of the first.
    """
    if any(layer.scopes for layer in first) and not any(layer.scopes for layer in second):
        # Modules look for the nodes that they became: of several the last, with BatchNorm folded.
        order = {id(layer): index for index, layer in enumerate(first)}
        turned = [
            (layer, other, _aligned(layer.array, other.array))
            for other, layer, _ in match_layers(second, first)
        ]
        pairs = [(layer, other, array) for layer, other, array in turned if array is not None]
        return sorted(pairs, key=lambda pair: order[id(pair[0])])
    # TensorFlow makes names of scopes its own by a suffix: conv2d becomes conv2d_1. Which of the
    # two models has such names is not known: the reading under which most layers match is right.
    readings = ((_same, _same), (_same, _unnumbered), (_unnumbered, _same))
    return max((_pairs(first, second, *reading) for reading in readings), key=len)


def _same(name: str) -> str:
    return name


def _unnumbered(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _pairs(
    first: Sequence[LayerOutput],
    second: Sequence[LayerOutput],
    read_first: Callable[[str], str],
    read_second: Callable[[str], str],
) -> list[tuple[LayerOutput, LayerOutput, Array]]:
    by_name: dict[str, LayerOutput] = {}
    for layer in second:
        for name in (*layer.scopes, layer.name):
            by_name[read_second(name)] = layer
    pairs: list[tuple[LayerOutput, LayerOutput, Array]] = []
    used: set[int] = set()
    previous: tuple[LayerOutput, LayerOutput] | None = None
    for layer in first:
        names = [read_first(name) for name in (layer.name, *layer.scopes)]
        other = next((by_name[name] for name in names if name in by_name), None)
        if other is None and previous is not None and _is_folded(layer, previous[0]):
            other = previous[1]
            pairs = [pair for pair in pairs if pair[1] is not other]
            used.discard(id(other))
        if other is not None and id(other) in used:
            continue
        array = None if other is None else _aligned(layer.array, other.array)
        if other is None or array is None:
            previous = None  # nothing is folded into a layer that has no counterpart
            continue
        used.add(id(other))
        pairs.append((layer, other, array))
        previous = (layer, other)
    return pairs


def _is_folded(layer: LayerOutput, before: LayerOutput) -> bool:
    is_norm = layer.kind.startswith(("BatchNorm", "SyncBatchNorm"))
    takes_norm = "conv" in before.kind.lower() or before.kind in ("Linear", "Dense")
    return is_norm and takes_norm and layer.array.shape == before.array.shape


def _aligned(first: Array, second: Array) -> Array | None:
    """Return the second array in the order of axes of the first; None when shapes do not fit."""
    candidates = [second] if first.shape == second.shape else []
    if first.ndim == second.ndim == 4:
        for axes in (_NHWC_TO_NCHW, _NCHW_TO_NHWC):
            turned = second.transpose(axes)
            if turned.shape == first.shape:
                candidates.append(turned)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    # A square image with as many channels as pixels: the order that fits better is meant.
    return min(candidates, key=lambda array: float(np.abs(first - array).sum()))


def first_divergence(
    differences: Sequence[LayerDifference], tolerance: float
) -> LayerDifference | None:
    """Return the first layer whose relative difference exceeds the tolerance."""
    return next((entry for entry in differences if not entry.relative <= tolerance), None)


@dataclass(frozen=True)
class Traced:
    """What one run of a model told.

    Attributes:
        outputs: by name.
        layers: what each layer returned; empty when they were not asked for, or cannot be told.
        latency_ms: median of warm runs with one thread; None when it was not measured.
    """

    outputs: Mapping[str, Array]
    layers: Sequence[LayerOutput]
    latency_ms: float | None


def trace(
    source: ModelSource, arrays: Mapping[str, Array], *, layers: bool = True, runs: int = 0
) -> Traced:
    """Run a model in a fresh process, and record its outputs and what its layers return.

    Args:
        source: the model.
        arrays: its inputs, by name.
        layers: record the layers, too.
        runs: how many runs to time.

    Raises:
        IngotError: whatever running it raised; ModelError when the process died.
    """
    request = {"source": pack_source(source), "layers": layers, "runs": runs}
    answer, returned = call_in_child("runtime.layers:serve_trace", request, source.label, arrays)
    found = [
        LayerOutput(entry["name"], entry["kind"], returned[f"layer/{n}"], tuple(entry["scopes"]))
        for n, entry in enumerate(answer["layers"])
    ]
    outputs = {name: returned[f"output/{n}"] for n, name in enumerate(answer["outputs"])}
    return Traced(outputs, found, answer["latency_ms"])


def serve_trace(
    request: Mapping[str, Any], arrays: Mapping[str, Array]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Trace a model; the other end of :func:`trace`, in a fresh process."""
    model = open_model(unpack_source(request["source"]), LoadOptions(threads=1))
    feeds = {name: restore_dtype(array, name, model.inputs) for name, array in arrays.items()}
    outputs = model.run(feeds)
    found = _layers(model, feeds) if request["layers"] else []
    layers = [layer for layer in found if layer.array.dtype.kind == "f"]
    named = [{"name": it.name, "kind": it.kind, "scopes": list(it.scopes)} for it in layers]
    runs = request["runs"]
    latency = median_latency(lambda: model.run(feeds), runs) if runs else None
    answer = {"layers": named, "outputs": list(outputs), "latency_ms": latency}
    packed = {f"layer/{n}": layer.array for n, layer in enumerate(layers)}
    return answer, packed | {f"output/{n}": array for n, array in enumerate(outputs.values())}


def _layers(model: Model, feeds: Mapping[str, Array]) -> list[LayerOutput]:
    """Return what the layers returned; none where a framework cannot run the model like that."""
    try:
        return model.layers(feeds)
    except Exception as error:
        logging.getLogger("ingot").warning("its layers cannot be told: %s", first_line(error))
        return []


def median_latency(call: Callable[[], object], runs: int, seconds: float = 0.25) -> float:
    """Return the median time of a call in ms: after two to warm up, ``runs`` of them.

    At least three are timed, and no more once ``seconds`` are over.
    """
    for _ in range(2):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < runs and (len(times) < 3 or time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)
