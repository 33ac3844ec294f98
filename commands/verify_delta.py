"""``verify --delta``: measure again, on the file that ships, that a metric is within delta."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, SpecError, UsageError
from ..specs import ModelSpec, load_spec

if TYPE_CHECKING:
    from ..training.evaluation import Evaluation
    from ..training.problem import Problem

THREADS = 1
"""Of one operator, as in a search: the figures of its verdict are found again."""


@dataclass(frozen=True)
class Promise:
    """What is to be proven.

    Attributes:
        spec: says data, evaluation, the metric that counts, and the model that was given.
        delta: the permitted drop, in the metric's own range.
        split: that is measured on.
        reference: a file that is measured in place of the spec's own network.
    """

    spec: ModelSpec
    delta: float
    split: str
    reference: Path | None = None


@dataclass(frozen=True)
class DeltaMeasured:
    """A file beside its reference.

    Attributes:
        reference: the file of the reference; None for the network of the spec.
        eval_key: the metric that counts.
        eval_split: the split that it was measured on.
        higher_is_better: whether a larger value of it is better.
        samples: how many the split gave.
        delta: the permitted drop.
        drop: of the file; positive is worse, infinite when its metric is no number.
        drop_interval: of 95%; None where no results of single samples exist.
        reference_metrics: by name.
        metrics: of the file, by name.
    """

    reference: Path | None
    eval_key: str
    eval_split: str
    higher_is_better: bool
    samples: int
    delta: float
    drop: float
    drop_interval: tuple[float, float] | None
    reference_metrics: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        """Whether the drop is at most delta; the error of rounding does not count."""
        scale = max(abs(self.reference_metrics[self.eval_key]), self.delta)
        return self.drop <= self.delta + 1e-12 * scale

    def describe(self) -> str:
        """Return what was found, in one line."""
        key, interval = self.eval_key, self.drop_interval
        between = "" if interval is None else f"95%: {interval[0]:.4g} to {interval[1]:.4g}; "
        return (
            f"{key} {self.metrics[key]:.6g}, of the reference {self.reference_metrics[key]:.6g}:"
            f" drop {self.drop:.4g} ({between}{self.delta:g} permitted) on {self.samples} samples"
            f" of the split {self.eval_split!r}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute, and what is no number is null."""
        from ..training.evaluation import json_values

        values: dict[str, Any] = json_values(
            {
                "eval_key": self.eval_key,
                "eval_split": self.eval_split,
                "higher_is_better": self.higher_is_better,
                "samples": self.samples,
                "delta": self.delta,
                "drop": self.drop,
                "drop_interval": self.drop_interval,
                "reference_metrics": self.reference_metrics,
                "metrics": self.metrics,
            }
        )
        reference = None if self.reference is None else str(self.reference.absolute())
        return {"reference": reference, **values}


def settle_promise(
    spec: str | Path | ModelSpec,
    delta: float | None,
    split: str | None,
    reference: str | Path | None,
    overrides: Sequence[str] = (),
) -> Promise:
    """Put together what is to be proven.

    Args:
        spec: names data, evaluation and the model that was given.
        delta: the permitted drop; ``optimization.delta`` of the spec by default.
        split: ``evaluation.eval_split`` by default.
        reference: see :class:`Promise`.
        overrides: ``key.path=value`` changes of the spec.

    Raises:
        UsageError: the delta is impossible.
        SpecError: the spec is invalid, or is none.
        ModelError: there is no such file.
    """
    from ..runtime.detect import detect, expand

    if isinstance(spec, ModelSpec):
        loaded = spec
    else:
        path = expand(spec)
        kind = detect(path)
        if kind != "spec":
            raise SpecError(
                f"{path}: --spec: found {kind}; expected a spec with data and evaluation"
            )
        loaded = load_spec(path, overrides)
    if delta is None:
        delta = loaded.optimization[0].delta
    if not (delta >= 0 and math.isfinite(delta)):
        raise UsageError(f"--delta: found {delta}; expected a number of at least 0")
    file = None if reference is None else expand(reference)
    if file is not None:
        detect(file)
    return Promise(loaded, delta, split or loaded.evaluation.eval_split, file)


def measure_delta(
    path: Path, promise: Promise, trust_code: bool = False, ignore_lock: bool = False
) -> DeltaMeasured:
    """Measure a file and its reference on the same split.

    Args:
        path: a package, a model file of any format that Ingot runs, or a spec.
        promise: what is to be proven.
        trust_code: packages may run the code that they carry.
        ignore_lock: run even if locked requirements differ from what is installed.

    Raises:
        SpecError: data, split or evaluation are missing.
        ModelError: a model cannot be read or is not trusted; the reference's metric is no number.
        InputError: a batch does not fit a model.
        MissingDependencyError: a framework is not installed.
    """
    from ..optimizers.statistics import Metric, paired_drop, scale_of
    from ..training.assess import eval_key
    from ..training.device import Device
    from ..training.problem import Problem
    from .evaluate import warn_of_random_weights

    problem = Problem(promise.spec, Device.CPU)
    key_of_split = "--eval-split"
    if promise.split == promise.spec.evaluation.eval_split:
        key_of_split = "evaluation.eval_split"
    problem.split(promise.split, key_of_split)
    if promise.reference is None:
        warn_of_random_weights(problem, strict=False)
    with _opened(promise.reference, problem, trust_code, ignore_lock) as model:
        before, samples = _measure(problem, model, promise.split)
    key = eval_key(problem, before)
    value = before.value(key)
    if not math.isfinite(value):
        label = promise.reference or problem.label
        raise ModelError(f"{label}: the reference's {key} is {value}; expected a number")
    with _opened(path, problem, trust_code, ignore_lock) as model:
        after, _ = _measure(problem, model, promise.split)
    results = before.per_sample.get(key)
    higher = promise.spec.evaluation.higher_is_better
    metric = Metric(key, higher, scale_of(value, results))
    paired = paired_drop(metric, results, after.per_sample.get(key))
    return DeltaMeasured(
        promise.reference,
        key,
        promise.split,
        higher,
        samples,
        promise.delta,
        metric.drop(value, after.value(key)),
        None if paired is None else paired.interval,
        before.metrics,
        after.metrics,
    )


def _measure(problem: Problem, model: Any, split: str) -> tuple[Evaluation, int]:
    from ..training.assess import evaluate_on

    return evaluate_on(problem, model, problem.split(split, "evaluation.eval_split"))


@contextmanager
def _opened(
    path: Path | None, problem: Problem, trust_code: bool, ignore_lock: bool
) -> Iterator[Any]:
    """Open a file, or the spec's own network, as what an evaluation calls."""
    from ..runtime.loading import load
    from ..training.evaluation import CallableModel
    from ..training.hardware import set_threads

    if path is None:
        set_threads(THREADS, problem.spec.model.framework)
        yield problem.load_network(THREADS)
        return
    options: Any = {"trust_code": trust_code, "ignore_lock": ignore_lock}
    with load(path, threads=THREADS, **options) as loaded:
        yield CallableModel(loaded, str(path))
