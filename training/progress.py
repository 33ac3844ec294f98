"""How far a run is, for whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .callbacks import Callback
from .runner import Runner


@dataclass(frozen=True)
class TrainProgress:
    """How far a run is.

    Attributes:
        kind: ``step``, ``evaluation`` or ``end``.
        epoch: the present epoch, from 1.
        epochs: how many there are.
        step: steps that are complete.
        total_steps: all steps; None when the data does not say.
        record: numbers of the last steps.
        metrics: of the last evaluation.
        eval_key: which of them counts.
        seconds_left: estimated from the steps so far.
    """

    kind: str
    epoch: int
    epochs: int
    step: int
    total_steps: int | None
    record: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    eval_key: str | None = None
    seconds_left: float | None = None


class ProgressCallback(Callback):
    """Tells a function how far the run is.

    Args:
        report: gets a :class:`TrainProgress`.
    """

    def __init__(self, report: Callable[[TrainProgress], None]) -> None:
        self.report = report
        self._start: tuple[float, int] = (0.0, 0)
        self._record: Mapping[str, float] = {}
        self._metrics: Mapping[str, float] = {}

    def before_run(self, runner: Runner) -> None:
        self._start = (time.perf_counter(), runner.state.step)

    def on_record(self, runner: Runner, record: Mapping[str, float]) -> None:
        self._record = record
        self._send(runner, "step")

    def after_evaluate(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        self._metrics = metrics
        entry = runner.state.history[-1]
        loss = {} if entry["loss"] is None else {"loss": entry["loss"]}
        self._record = {**self._record, **loss, "learning_rate": runner.learning_rate}
        self._send(runner, "evaluation")

    def after_run(self, runner: Runner) -> None:
        self._send(runner, "end")

    def _send(self, runner: Runner, kind: str) -> None:
        state, total = runner.state, runner.total_steps
        begun, first = self._start
        done = state.step - first
        left = None
        if total is not None and done:
            left = (time.perf_counter() - begun) / done * max(0, total - state.step)
        epoch = state.epoch + (1 if kind == "step" else 0)
        self.report(
            TrainProgress(
                kind,
                epoch,
                runner.options.epochs,
                state.step,
                total,
                self._record,
                self._metrics,
                runner.eval_key,
                left,
            )
        )
