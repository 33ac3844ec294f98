"""Evaluates a candidate sample by sample beside the reference, and sends a hopeless one away."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..training.evaluation import Evaluation, json_values
from .statistics import Array, Metric, is_hopeless, paired_drop

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = (0.125, 0.125, 0.25)
"""Parts of the evaluation split after which a candidate may be sent away."""

Evaluate = Callable[[Iterable[Any]], Evaluation]


class Order(Protocol):
    """An order of the samples of a split, of which any part tells of the whole."""

    def parts(self, fractions: Sequence[float]) -> Iterator[tuple[Array, Iterable[Any]]]:
        """Yield indices and batches of parts, the last of which is what is left."""


class Compared(Protocol):
    """What candidates are compared with.

    Attributes:
        metric: the one that counts.
        value: of the reference.
        per_sample: its results of single samples, in the order of the split; None where there are
            none.
        order: in which candidates are measured, so that they can be sent away early; None where
            that cannot be.
    """

    @property
    def metric(self) -> Metric: ...
    @property
    def value(self) -> float: ...
    @property
    def per_sample(self) -> Array | None: ...
    @property
    def order(self) -> Order | None: ...


@dataclass(frozen=True)
class Outcome:
    """How an evaluation ended.

    Attributes:
        metrics: by name; of a candidate that was sent away, only the drop so far under the name of
            the metric that counts.
        drop: of the metric that counts, in its own range.
        interval: of 95%; None where there are no results of single samples.
        samples: that were looked at, where results of single samples exist.
        is_early: it was sent away.
    """

    metrics: dict[str, float]
    drop: float
    interval: tuple[float, float] | None
    samples: int | None
    is_early: bool


def evaluate_beside(
    reference: Compared, evaluate: Evaluate, loader: Iterable[Any], limit: float
) -> Outcome:
    """Evaluate a candidate; stop as soon as its drop is certain to be above a limit.

    Args:
        reference: what it is compared with.
        evaluate: measures the candidate on some batches.
        loader: the whole split.
        limit: the largest drop that is of use; infinite where any is, and then all is measured at
            once, with all metrics.
    """
    metric, before, order = reference.metric, reference.per_sample, reference.order
    if before is None or order is None or math.isinf(limit):
        found = evaluate(loader)
        results = found.per_sample.get(metric.key)
        metrics = json_values(found.metrics)
        if metric.scale is not None and results is not None:
            metrics = {**metrics, metric.key: metric.mean(results)}
        return _whole(reference, metrics, results)
    results = np.empty_like(before)
    seen: list[Array] = []
    for indices, batches in order.parts(PARTS):
        results[indices] = evaluate(batches).per_sample[metric.key]
        seen.append(indices)
        some = np.concatenate(seen)
        is_last = len(some) == len(before)
        if not is_last and is_hopeless(metric, before[some], results[some], limit):
            drop = paired_drop(metric, before[some], results[some])
            value = 0.0 if drop is None else drop.value
            interval = None if drop is None else drop.interval
            return Outcome({metric.key: value}, value, interval, len(some), True)
    return _whole(reference, {metric.key: metric.mean(results)}, results)


def _whole(reference: Compared, metrics: dict[str, float], results: Array | None) -> Outcome:
    metric = reference.metric
    value = metrics[metric.key]
    drop = metric.drop(reference.value, math.nan if value is None else value)
    paired = paired_drop(metric, reference.per_sample, results)
    interval = None if paired is None else paired.interval
    return Outcome(metrics, drop, interval, None if results is None else len(results), False)
