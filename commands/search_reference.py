"""The reference of a search: measured once, and whether its delta can be kept and shown."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ModelError, UsageError

if TYPE_CHECKING:
    from ..optimizers.pruning.samples import RandomOrder
    from ..optimizers.statistics import Metric
    from ..training.problem import Problem

LEAST_SPLIT = 200
"""Samples of an evaluation split whose measurement is worth ending early."""


class FirstBatches:
    """The first batches of a split, for a dry run."""

    def __init__(self, loader: Any, count: int = 2) -> None:
        self._batches = list(islice(iter(loader), count))

    def __iter__(self) -> Any:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


@dataclass(frozen=True)
class Baseline:
    """The reference, as it was measured.

    Attributes:
        key: the metric that counts.
        value: of it.
        scale: see ``optimizers.statistics.Metric``.
        samples: of the evaluation split.
        early: whether candidates can be sent away after part of the split.
        seconds: that the evaluation took.
        metrics: all of them, by name.
        is_binary: each sample gives 0 or 1.
    """

    key: str
    value: float
    scale: float | None
    samples: int
    early: bool
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_binary: bool = True


def measure_reference(problem: Problem, model: Any, eval_split: str) -> tuple[Baseline, Any]:
    """Measure the model that was given; return that, and its results of single samples.

    Args:
        problem: its data and evaluation.
        model: a network, or a callable of the arguments of the forward pass.
        eval_split: the split that is measured on.

    Raises:
        ModelError: its metric is no number.
        InputError: the split is empty.
    """
    from ..optimizers.run_key import is_steady
    from ..optimizers.statistics import Metric, scale_of
    from ..training.assess import eval_key, evaluate_on
    from ..training.evaluation import json_values

    loader = problem.split(eval_split, "evaluation.eval_split")
    if next(iter(loader), None) is None:
        raise InputError(f"{problem.label}: evaluation.eval_split: {eval_split!r} gave no batch")
    start = time.monotonic()
    found, samples = evaluate_on(problem, model, loader)
    seconds = time.monotonic() - start
    key = eval_key(problem, found)
    value = found.value(key)
    if not math.isfinite(value):
        raise ModelError(
            f"{problem.label}: the reference's {key} is {value}; expected a number",
            hint="is model.weights the trained network?",
        )
    results = found.per_sample.get(key)
    scale = scale_of(value, results)
    if scale is not None and not is_steady(loader):
        logging.getLogger("ingot").warning(
            "%s: the split %r gives other samples, or another order, each time: no interval of the"
            " drop, and no candidate is sent away early",
            problem.label,
            eval_split,
        )
        scale = None
    early = scale is not None and _adds_up(problem, model, key, loader, results)
    if scale is not None and results is not None:
        value = Metric(key, scale=scale).mean(results)
    metrics = {**json_values(found.metrics), key: value}
    is_binary = results is not None and bool(((results == 0) | (results == 1)).all())
    return Baseline(key, value, scale, samples, early, seconds, metrics, is_binary), results


def metric_of(problem: Problem, baseline: Baseline, delta: float) -> Metric:
    """Return the metric that counts, after a look at whether delta makes sense.

    Warns of a delta that is finer than the split can show, and of a reference that guesses.

    Raises:
        UsageError: the delta is impossible in the metric's range.
    """
    from ..optimizers.statistics import Metric

    metric = Metric(baseline.key, problem.spec.evaluation.higher_is_better, baseline.scale)
    _check_delta(problem, delta, baseline.value, metric.key)
    _warn(problem, delta, metric, baseline)
    return metric


def random_order(
    problem: Problem, baseline: Baseline, eval_split: str, seed: int
) -> RandomOrder | None:
    """Return the order in which candidates are measured; None where they cannot be sent away."""
    from ..optimizers.pruning.samples import RandomOrder

    if not baseline.early:
        return None
    return RandomOrder.of(problem.split(eval_split, "evaluation.eval_split"), seed)


def _adds_up(problem: Problem, model: Any, key: str, loader: Any, results: Any) -> bool:
    """Whether an evaluation of some samples, picked at random, gives the results that they had."""
    from ..optimizers.pruning.samples import RandomOrder
    from ..training.assess import evaluate_on

    order = RandomOrder.of(loader, 0)
    if order is None or len(order.indices) != len(results) or len(results) < LEAST_SPLIT:
        return False
    indices, batches = next(order.parts((0.05,)))
    try:
        found, _ = evaluate_on(problem, model, batches)
    except Exception:  # it counts on its loader, or on a whole split; then it gets that
        return False
    some = found.per_sample.get(key)
    return some is not None and all(
        math.isclose(float(one), float(other), rel_tol=1e-4, abs_tol=1e-6)
        for one, other in zip(some, results[indices], strict=False)
    )


def _check_delta(problem: Problem, delta: float, value: float, key: str) -> None:
    section, label = problem.spec.evaluation, problem.label
    bounds = section.range
    if bounds is None:
        if not section.higher_is_better or not 0 <= value <= 100:
            return
        bounds = (0.0, 1.0) if value <= 1 else (0.0, 100.0)
    room = value - bounds[0] if section.higher_is_better else bounds[1] - value
    if delta >= room:
        low, high = bounds
        raise UsageError(
            f"{label}: delta: found {delta:g}, which {key} cannot drop by: the reference's is"
            f" {value:.6g}, in {low:g} to {high:g}",
            hint=f"delta is in the metric's own range: --delta {(high - low) / 100:g} is one"
            " hundredth of it",
        )


def _warn(problem: Problem, delta: float, metric: Any, baseline: Baseline) -> None:
    from ..optimizers.statistics import smallest_drop

    log, spec = logging.getLogger("ingot"), problem.spec
    value, samples = baseline.value, baseline.samples
    least = smallest_drop(metric, samples)
    if least is not None and baseline.is_binary and 0 < delta < least:
        log.warning(
            "delta %g is finer than %d samples can show: the smallest drop is %.3g",
            delta,
            samples,
            least,
        )
    outputs = spec.outputs or ()
    classes = outputs[0].shape[-1] if len(outputs) == 1 and outputs[0].shape else None
    if spec.task == "classification" and isinstance(classes, int) and metric.scale:
        chance = metric.scale / classes
        if metric.key == "accuracy" and value <= 1.5 * chance:
            log.warning(
                "%s: the reference's %s is %.4g, about what guessing gives (%.3g): is it trained?",
                problem.label,
                metric.key,
                value,
                chance,
            )
