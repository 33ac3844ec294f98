"""What the difference of two metrics means: intervals of paired samples, and early rejection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

Z_INTERVAL = 1.959964
"""Two-sided 95% of the normal distribution."""
Z_REJECT = 3.29
"""One-sided 99.95%: a candidate is looked at several times, and seldom wrongly sent away."""
LEAST_SAMPLES = 50
"""Fewer say nothing about a candidate yet."""


@dataclass(frozen=True)
class Drop:
    """By how much a metric got worse; positive is worse.

    Attributes:
        value: the drop.
        interval: of 95%, or None where no results of single samples exist.
    """

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Metric:
    """The metric that counts.

    Attributes:
        key: its name.
        higher_is_better: whether a larger value is better.
        scale: what the mean of its results of single samples is multiplied by; None when the
            metric is no such mean.
    """

    key: str
    higher_is_better: bool = True
    scale: float | None = None

    def mean(self, results: Array) -> float:
        """Return the metric from its results of single samples; it has a scale."""
        assert self.scale is not None
        return float(results.mean(dtype=np.float64)) * self.scale

    def drop(self, reference: float, value: float) -> float:
        """Return by how much a value is worse; NaN is worse than anything."""
        if math.isnan(value):
            return math.inf
        return (reference - value) if self.higher_is_better else (value - reference)


def is_within(drop: float, delta: float) -> bool:
    """Whether a drop is at most delta, but for the rounding of a difference of decimals."""
    return drop <= delta + 1e-9 * max(1.0, abs(delta))


def scale_of(value: float, per_sample: Array | None) -> float | None:
    """Return 1 or 100 when a metric is the mean of its samples times that; else None."""
    if per_sample is None or not len(per_sample) or not np.isfinite(per_sample).all():
        return None
    mean = float(per_sample.mean(dtype=np.float64))
    for scale in (1.0, 100.0):
        if math.isclose(mean * scale, value, rel_tol=1e-5, abs_tol=1e-7 * scale):
            return scale
    return None


def paired_drop(metric: Metric, reference: Array | None, candidate: Array | None) -> Drop | None:
    """Return the drop with its interval, from the results of the same samples.

    Results that are 0 or 1 get the adjusted Wald interval of Bonett and Price, 2012,
    doi:10.3102/1076998611411915 (it does not vanish when no sample changes); others the normal one.

    Args:
        metric: has a scale.
        reference: results ``(samples,)``.
        candidate: likewise, in the same order.

    Returns:
        None when there is no scale, or the samples are not the same ones.
    """
    found = _differences(metric, reference, candidate)
    if found is None:
        return None
    difference, scale = found
    value = float(difference.mean(dtype=np.float64)) * scale
    low, high = _interval(difference, Z_INTERVAL)
    if not math.isfinite(high - low):  # of one sample
        return Drop(value)
    return Drop(value, (low * scale, high * scale))


def is_hopeless(metric: Metric, reference: Array, candidate: Array, limit: float) -> bool:
    """Whether the first samples of a candidate show that its drop will be above a limit.

    Args:
        metric: has a scale.
        reference: results of the same samples.
        candidate: results so far.
        limit: the largest drop that is of use.
    """
    found = _differences(metric, reference[: len(candidate)], candidate)
    if found is None or len(candidate) < LEAST_SAMPLES:
        return False
    low, _ = _interval(found[0], Z_REJECT)
    return low * found[1] > limit


def smallest_drop(metric: Metric, samples: int) -> float | None:
    """Return the smallest drop but 0 that so many samples can show: that of one of them."""
    return metric.scale / samples if metric.scale is not None and samples else None


def _differences(
    metric: Metric, reference: Array | None, candidate: Array | None
) -> tuple[Array, float] | None:
    if metric.scale is None or reference is None or candidate is None:
        return None
    if len(reference) != len(candidate) or not len(reference):
        return None
    sign = 1.0 if metric.higher_is_better else -1.0
    return sign * (reference.astype(np.float64) - candidate.astype(np.float64)), metric.scale


def _interval(difference: Array, z: float) -> tuple[float, float]:
    count = len(difference)
    if np.isin(difference, (-1.0, 0.0, 1.0)).all():
        worse = (float((difference > 0).sum()) + 1) / (count + 2)
        better = (float((difference < 0).sum()) + 1) / (count + 2)
        centre = worse - better
        spread = z * math.sqrt(max(worse + better - centre**2, 0.0) / (count + 2))
        return max(-1.0, centre - spread), min(1.0, centre + spread)
    centre = float(difference.mean())
    deviation = float(difference.std(ddof=1)) if count > 1 else math.inf
    spread = z * deviation / math.sqrt(count)
    return centre - spread, centre + spread
