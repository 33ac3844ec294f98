"""Latency: two model files timed in turns, so that a busy machine slows both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_WARM_UP = 5
_LEAST_RUNS = 21
_MOST_RUNS = 301
_SECONDS = 2.0


@dataclass(frozen=True)
class Comparison:
    """Times of two models.

    Attributes:
        reference_ms: median of the reference.
        candidate_ms: median of the candidate.
        ratio: median of candidate over reference, run by run; below 1 is faster.
        interval: of 95%, of that median.
    """

    reference_ms: float
    candidate_ms: float
    ratio: float
    interval: tuple[float, float]

    @property
    def is_slower(self) -> bool:
        """Whether the candidate is slower, beyond what chance explains."""
        return self.interval[0] > 1.0


def compare_latency(
    reference: Path, candidate: Path, feeds: Mapping[str, Array], threads: int = 1
) -> Comparison:
    """Time two files, each in its runtime, on the same inputs.

    Args:
        reference: a file.
        candidate: a file with the same inputs.
        feeds: inputs by name.
        threads: of one operator.
    """
    calls = [_session(path, feeds, threads) for path in (reference, candidate)]
    return compare_calls(*calls)


def compare_calls(reference: Callable[[], object], candidate: Callable[[], object]) -> Comparison:
    """Time two functions in turns; each has to wait for its result."""
    for _ in range(_WARM_UP):
        reference()
        candidate()
    first: list[float] = []
    second: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(first) < _MOST_RUNS and (len(first) < _LEAST_RUNS or time.perf_counter() < end):
        # Who goes first changes: the second finds the caches of the first.
        pairs = [(reference, first), (candidate, second)]
        for call, times in pairs if len(first) % 2 else reversed(pairs):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
    ratios = sorted(after / before for before, after in zip(first, second, strict=True))
    return Comparison(
        statistics.median(first),
        statistics.median(second),
        statistics.median(ratios),
        _median_interval(ratios),
    )


def _median_interval(values: list[float]) -> tuple[float, float]:
    """Return the interval of 95% of a median, from sorted values: order statistics."""
    count = len(values)
    spread = 1.959964 * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - spread))
    high = min(count - 1, math.ceil(count / 2 + spread))
    return values[low], values[high]


def _session(path: Path, feeds: Mapping[str, Array], threads: int) -> Callable[[], object]:
    from ..frameworks import LoadOptions, ModelSource, open_model

    framework = "tflite" if path.suffix == ".tflite" else "onnx"
    source = ModelSource(framework, path.name, None, None, path)
    model = open_model(source, LoadOptions(threads=threads))
    return lambda: model.run(feeds)
