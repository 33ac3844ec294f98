"""The parity gate: an exported file is run in a fresh process and compared with its source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import CheckError, IngotError, MissingDependencyError, ModelError
from ..frameworks import LoadOptions, ModelSource, open_model
from ..runtime.child import call_in_child
from ..runtime.exchange import pack_source, unpack_source
from ..runtime.golden import restore_dtype
from ..runtime.layers import median_latency
from ..specs.dtypes import numpy_dtype
from ..specs.tensors import TensorSpec, format_shape
from .base import Array, Draft
from .variants import ParityInputs

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""Largest permitted difference, relative to the largest value of an output.

fp32: other orders of summation differ by some 1e-6 in a deep network; a wrong weight by far more.
fp16 and bf16 round every value to 11 and 8 bits (5e-4 and 4e-3), which adds up over the layers.
"""

_SIZES_HINT = "give a --resolution that the network takes"
_RUNS = 20
_FAR = 1e4
"""A value beyond this, and beyond this many times the median, is far from the others."""

Sets = Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True)
class Difference:
    """How one output of one set of inputs differs from the source's.

    Attributes:
        inputs: which inputs.
        output: the output.
        max_absolute: the largest absolute difference; for what is no number, None.
        max_relative: the largest difference relative to the source's value there.
        scaled: the largest absolute difference relative to the output's largest magnitude, which
            the tolerance bounds; the share of values that differ, for integers and strings.
        cosine: of the angle between both, as vectors.
    """

    inputs: str
    output: str
    max_absolute: float | None
    max_relative: float | None
    scaled: float
    cosine: float | None


@dataclass(frozen=True)
class Parity:
    """What the gate found of a file that passed.

    Attributes:
        inputs: the sets of inputs that it was run on.
        worst: the largest difference of all outputs on all of them.
        cosine: the smallest.
        latency_ms: median of runs at the first batch of the random inputs, one thread, warm.
        tolerance: the permitted ``worst.scaled``.
    """

    inputs: tuple[str, ...]
    worst: Difference
    cosine: float | None
    latency_ms: float
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "max_absolute": self.worst.max_absolute,
            "max_relative": self.worst.max_relative,
            "scaled": self.worst.scaled,
            "cosine": self.cosine,
            "tolerance": self.tolerance,
            "worst_output": self.worst.output,
            "worst_inputs": self.worst.inputs,
            "inputs": list(self.inputs),
        }


def run_source_on(
    model: Any, inputs: Sequence[ParityInputs], label: str
) -> tuple[dict[str, Mapping[str, Array]], dict[str, dict[str, Array]]]:
    """Run the source on every set of inputs, in this process.

    Returns:
        the inputs that it takes, and its outputs, by name of the set.

    Raises:
        ModelError: it fails; the message names the inputs, and so the resolution.
    """
    results, sets = {}, {}
    names = [spec.name for spec in model.outputs]
    for entry in inputs:
        name, arrays = entry.name, entry.arrays
        try:
            returned = model.run(arrays, names or None)
        except ModelError as error:
            if entry.optional:  # sizes or values that the model does not take
                continue
            shapes = ", ".join(f"{key} {format_shape(a.shape)}" for key, a in arrays.items())
            raise ModelError(
                f"{error.message} (on {name}: {shapes})",
                hint=error.hint or (_SIZES_HINT if " at " in name else None),
            ) from error
        missing = next((key for key in names if key not in returned), None)
        if missing is not None:
            found = ", ".join(map(repr, model.run(arrays))) or "none"
            raise ModelError(
                f"{label}: the model did not return the output {missing!r}; found {found}"
            )
        if entry.optional and not all(_is_finite(returned[key]) for key in names or returned):
            continue
        sets[name] = arrays
        results[name] = {key: np.array(returned[key]) for key in names or returned}
    return sets, results


def _is_finite(array: Array) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def check(draft: Draft, sets: Sets, expected: Sets, tolerance: float, half_io: bool) -> Parity:
    """Run a file in a fresh process and compare it with its source.

    Args:
        draft: the file.
        sets: inputs by name of the set.
        expected: what the source returns for them.
        tolerance: permitted difference, relative to the largest value of an output.
        half_io: its outputs are in half precision, other than the source's.

    Raises:
        CheckError: an output differs by more than the tolerance, or the file crashes its runtime.
        MissingDependencyError: its runtime is not installed.
    """
    try:
        actual, latency = _run(draft, sets)
    except MissingDependencyError:
        raise
    except IngotError as error:
        reason = error.message.removeprefix(f"{draft.path.name}: ")
        raise CheckError(f"{draft.path.name}: not delivered: {reason}", hint=error.hint) from error
    unbatched = _unbatched(draft)
    for name, outputs in expected.items():
        for output, array in outputs.items():
            found = actual[name].get(output)
            if found is not None and not half_io and _other_float(found, array):
                raise CheckError(
                    f"{draft.path.name}: not delivered: output {output!r} is {found.dtype}; the"
                    f" source returns {array.dtype}"
                )
    differences = [
        difference(name, output, array, actual[name].get(output))
        for name, outputs in expected.items()
        for output, array in outputs.items()
        if output not in unbatched or _batch(draft, sets[name]) == 1
    ]
    worst = max(differences, key=lambda item: math.inf if math.isnan(item.scaled) else item.scaled)
    if not worst.scaled <= tolerance:
        raise CheckError(
            f"{draft.path.name}: not delivered: {_describe(worst, expected, actual, tolerance)}"
        )
    cosines = [item.cosine for item in differences if item.cosine is not None]
    return Parity(tuple(sets), worst, min(cosines, default=None), latency, tolerance)


def _other_float(found: Array, expected: Array) -> bool:
    return found.dtype.kind == expected.dtype.kind == "f" and found.dtype != expected.dtype


def _unbatched(draft: Draft) -> set[str]:
    """Name the outputs of a file of batch 1 that samples cannot be put together from."""
    if not draft.per_sample:
        return set()
    return {
        spec.name
        for spec in draft.variant.outputs
        if not spec.shape or isinstance(spec.shape[0], int)
    }


def _batch(draft: Draft, arrays: Mapping[str, Array]) -> int:
    for spec in draft.variant.inputs:
        if spec.shape and not isinstance(spec.shape[0], int):
            return len(arrays[spec.name])
    return 1


def _describe(worst: Difference, expected: Sets, actual: Sets, tolerance: float) -> str:
    found = actual[worst.inputs].get(worst.output)
    wanted = expected[worst.inputs][worst.output]
    place = f"output {worst.output!r} on {worst.inputs}"
    if found is None:
        return f"it does not return the output {worst.output!r}"
    if found.shape != wanted.shape:
        return (
            f"{place} has the shape {format_shape(found.shape)};"
            f" the source returns {format_shape(wanted.shape)}"
        )
    if worst.max_absolute is None:
        return f"{place}: {worst.scaled:.2%} of the values differ; expected at most {tolerance:.2%}"
    return (
        f"{place} differs by {worst.max_absolute:.3g}, {worst.scaled:.2g} of its largest value;"
        f" expected at most {tolerance:g}"
    )


def difference(inputs: str, output: str, expected: Array, actual: Array | None) -> Difference:
    """Compare one output; infinitely different where it is missing or has another shape."""
    if actual is None or expected.shape != actual.shape:
        return Difference(inputs, output, None, None, math.inf, None)
    if expected.dtype.kind not in "fcV" or actual.dtype.kind in "USO":
        share = float(np.mean(expected != actual)) if expected.size else 0.0
        return Difference(inputs, output, None, None, share, None)
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    left, right = actual.astype(wide).ravel(), expected.astype(wide).ravel()
    if not right.size:
        return Difference(inputs, output, 0.0, 0.0, 0.0, None)
    # What is not a number, or infinite, has to be so in both.
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return Difference(inputs, output, math.inf, math.inf, math.inf, None)
    if not finite.any():
        return Difference(inputs, output, 0.0, 0.0, 0.0, None)
    left, right = left[finite], right[finite]
    absolute = np.abs(left - right)
    largest = float(absolute.max())
    if math.isnan(largest):
        largest = math.inf
    with np.errstate(all="ignore"):
        relative = float(np.nanmax(np.where(absolute == 0, 0, absolute / np.abs(right))))
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    cosine = float(np.real(np.vdot(left, right))) / lengths if lengths else None
    return Difference(inputs, output, largest, relative, _scaled(absolute, right), cosine)


def _scaled(absolute: Array, expected: Array) -> float:
    """Return the largest difference relative to the largest value.

    Values far beyond all others (masks of -1e9) are measured by themselves, and do not hide what
    the others differ by.
    """
    if np.isnan(absolute).any():
        return math.inf
    magnitude = np.abs(expected)
    usual = np.ones(magnitude.shape, bool)
    if magnitude.max() > _FAR:
        usual = magnitude <= _FAR * np.median(magnitude[magnitude > 0])
    found = 0.0
    for chosen in (usual, ~usual):
        if chosen.any():
            scale, largest = float(magnitude[chosen].max()), float(absolute[chosen].max())
            found = max(found, largest / scale if scale else largest)
    return found


def _run(draft: Draft, sets: Sets) -> tuple[dict[str, dict[str, Array]], float]:
    request = {
        "source": pack_source(replace(draft.runner, label=draft.path.name)),
        "sets": list(sets),
        "per_sample": [
            spec.name
            for spec in draft.variant.inputs
            if draft.per_sample and spec.shape and not isinstance(spec.shape[0], int)
        ],
    }
    packed = {
        f"{index}/{key}": array
        for index, arrays in enumerate(sets.values())
        for key, array in arrays.items()
    }
    answer, returned = call_in_child("exporters.parity:serve", request, draft.path.name, packed)
    results: dict[str, dict[str, Array]] = {name: {} for name in sets}
    names = list(sets)
    for key, array in returned.items():
        index, _, output = key.partition("/")
        dtyped = restore_dtype(array, output, draft.runner.outputs or draft.variant.outputs)
        results[names[int(index)]][output] = dtyped
    return results, float(answer["latency_ms"])


def serve(
    request: Mapping[str, Any], arrays: Mapping[str, Array]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Run a file on sets of inputs; the other end of :func:`check`, in a fresh process."""
    source: ModelSource = unpack_source(request["source"])
    model = open_model(source, LoadOptions(threads=1))
    results: dict[str, Array] = {}
    feeds = {}
    for index, name in enumerate(request["sets"]):
        prefix = f"{index}/"
        feed = {
            key.removeprefix(prefix): _as_taken(array, key.removeprefix(prefix), model.inputs)
            for key, array in arrays.items()
            if key.startswith(prefix)
        }
        feeds[name] = feed
        for output, array in _call(model, feed, request["per_sample"]).items():
            results[f"{prefix}{output}"] = array
    fastest = min(feeds.values(), key=lambda feed: sum(array.size for array in feed.values()))
    latency = median_latency(lambda: _call(model, fastest, request["per_sample"]), _RUNS)
    return {"latency_ms": latency}, results


def _as_taken(array: Array, name: str, specs: Sequence[TensorSpec]) -> Array:
    """Return an input in the type that the file takes, where it takes half precision."""
    array = restore_dtype(array, name, specs)
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is not None and spec.dtype in ("float16", "bfloat16") and array.dtype == np.float32:
        return array.astype(numpy_dtype(spec.dtype))
    return array


def _call(model: Any, feed: Mapping[str, Array], per_sample: Sequence[str]) -> dict[str, Array]:
    if not per_sample:
        returned: dict[str, Array] = model.run(feed)
        return returned
    batch = len(feed[per_sample[0]])
    parts = [
        model.run(
            {
                name: array[index : index + 1] if name in per_sample else array
                for name, array in feed.items()
            }
        )
        for index in range(batch)
    ]
    return {
        name: np.concatenate([part[name] for part in parts]) if array.ndim else array
        for name, array in parts[0].items()
    }
