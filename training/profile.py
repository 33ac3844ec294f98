"""Profiles a model: what it computes and holds (:mod:`.complexity`), and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..errors import IngotError
from ..frameworks import LoadOptions, Model, ModelSource, open_model
from ..frameworks.base import first_line
from ..runtime.child import call_in_child
from ..runtime.exchange import pack_source, unpack_source
from ..runtime.golden import restore_dtype
from .complexity import Array, Arrays, Complexity, LayerProfile, input_bytes

WARM_UP = 5
RUNS = 10


@dataclass(frozen=True)
class Latency:
    """Times of one call, in ms: the median, quartiles and extremes of ``runs`` calls."""

    median_ms: float
    p25_ms: float
    p75_ms: float
    min_ms: float
    max_ms: float
    runs: int
    warm_up: int


@dataclass(frozen=True)
class Profile:
    """What profiling a model told.

    Attributes:
        complexity: what it computes and holds.
        latency: how long a call takes.
        device: where it ran: ``CPU`` or ``GPU``.
    """

    complexity: Complexity
    latency: Latency
    device: str


def profile_source(
    source: ModelSource,
    arrays: Arrays,
    timed: Arrays,
    *,
    device: str = "cpu",
    threads: int | None = 1,
    runs: int = RUNS,
    warm_up: int = WARM_UP,
) -> Profile:
    """Profile a model in a fresh process.

    Args:
        source: the model.
        arrays: inputs by name, of one sample, for which operations and memory are counted.
        timed: inputs by name, for which a call is timed.
        device: ``cpu`` or ``gpu``.
        threads: threads of one operator; None leaves the framework's default.
        runs: how many calls are timed.
        warm_up: how many come before.

    Raises:
        IngotError: whatever loading or running it raised; ModelError when the process died.
    """
    request = {
        "source": pack_source(source),
        "device": device,
        "threads": threads,
        "runs": runs,
        "warm_up": warm_up,
    }
    packed = {f"one/{name}": array for name, array in arrays.items()}
    packed |= {f"timed/{name}": array for name, array in timed.items()}
    answer, _ = call_in_child("training.profile:serve_profile", request, source.label, packed)
    found = answer["complexity"]
    layers = tuple(LayerProfile(**entry) for entry in found.pop("layers"))
    layers = tuple(
        it if it.output_shape is None else replace(it, output_shape=tuple(it.output_shape))
        for it in layers
    )
    notes = tuple(found.pop("notes"))
    complexity = Complexity(**found, layers=layers, notes=notes)
    return Profile(complexity, Latency(**answer["latency"]), answer["device"])


def serve_profile(
    request: Mapping[str, Any], arrays: Arrays
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Profile a model; the other end of :func:`profile_source`, in a fresh process."""
    source = unpack_source(request["source"])
    model = open_model(source, LoadOptions(request["device"], request["threads"]))
    feeds: dict[str, dict[str, Array]] = {"one": {}, "timed": {}}
    for key, array in arrays.items():
        kind, _, name = key.partition("/")
        feeds[kind][name] = restore_dtype(array, name, model.inputs)
    timed = feeds["timed"]
    latency = measure_latency(lambda: model.run(timed), request["runs"], request["warm_up"])
    complexity = count(model, source, feeds["one"])
    device = _device(model, source, request["device"])
    answer = {"complexity": asdict(complexity), "latency": asdict(latency), "device": device}
    return answer, {}


def measure_latency(call: Callable[[], object], runs: int, warm_up: int) -> Latency:
    """Time calls, after some to warm up; the call has to wait for its result."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    low, lower, median, upper, high = (float(x) for x in np.percentile(times, (0, 25, 50, 75, 100)))
    return Latency(median, lower, upper, low, high, runs, warm_up)


def count(model: Model, source: ModelSource, feeds: Arrays) -> Complexity:
    """Count what a loaded model computes and holds for these inputs.

    Args:
        model: the model, which was run before.
        source: where it comes from.
        feeds: inputs by name, of one sample.
    """
    counter = _COUNTERS.get(source.framework)
    if counter is None:
        kind = f"a {source.framework} model" if source.framework != "python" else "Python code"
        found = Complexity(notes=(f"{kind} does not tell its parameters and operations",))
    else:
        try:
            found = counter(model, source, feeds)
        except (IngotError, OSError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            found = Complexity(notes=(f"its operations cannot be counted: {reason}",))
    file_bytes = _file_bytes(source)
    if found.size_bytes is None and file_bytes is not None:
        found = replace(found, size_bytes=file_bytes)
        found = replace(found, notes=(*found.notes, "the size is that of the file"))
    return replace(found, file_bytes=file_bytes)


def _count_torch(model: Model, source: ModelSource, feeds: Arrays) -> Complexity:
    from .torch_profile import profile_torch

    return profile_torch(model.native, lambda: model.run(feeds), input_bytes(feeds))


def _count_onnx(model: Model, source: ModelSource, feeds: Arrays) -> Complexity:
    from .onnx_profile import profile_onnx

    assert source.path is not None
    return profile_onnx(source.path, feeds)


def _count_keras(model: Model, source: ModelSource, feeds: Arrays) -> Complexity:
    from .keras_profile import profile_keras

    return profile_keras(model, feeds)


def _count_tflite(model: Model, source: ModelSource, feeds: Arrays) -> Complexity:
    from .tflite_profile import profile_tflite

    assert source.path is not None
    return profile_tflite(source.path, input_bytes(feeds))


_COUNTERS: Mapping[str, Callable[[Model, ModelSource, Arrays], Complexity]] = {
    "torch": _count_torch,
    "torchscript": _count_torch,
    "pt2": _count_torch,
    "onnx": _count_onnx,
    "keras": _count_keras,
    "tflite": _count_tflite,
}


def _file_bytes(source: ModelSource) -> int | None:
    place = source.weights or source.path
    if place is None:
        return None
    if place.is_dir():
        return sum(entry.stat().st_size for entry in place.rglob("*") if entry.is_file())
    companions = []
    if source.framework == "onnx":
        from ..frameworks.onnx import external_data_files

        companions = [place.parent / name for name in external_data_files(place)]
    elif source.framework == "openvino":
        companions = [place.with_suffix(".bin")]
    files = (place, *companions)
    return sum(file.stat().st_size for file in files if file.is_file())


def _device(model: Model, source: ModelSource, wanted: str) -> str:
    """Return where a model ran; an adapter falls back to the CPU where there is no GPU."""
    if wanted == "cpu" or source.framework == "tflite":
        return "CPU"
    if source.framework == "onnx":
        has_gpu = "CUDAExecutionProvider" in model.native.get_providers()
    elif source.framework in ("torch", "torchscript", "pt2"):
        import torch

        has_gpu = torch.cuda.is_available()
    elif source.framework in ("keras", "tensorflow"):
        from ..frameworks.tensorflow import import_tensorflow

        has_gpu = bool(import_tensorflow().config.list_physical_devices("GPU"))
    else:
        has_gpu = True
    return "GPU" if has_gpu else "CPU"
