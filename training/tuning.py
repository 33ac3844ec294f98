"""What a trial of a search of hyper-parameters does while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ..errors import SpecError, TrainingError
from .callbacks import Callback
from .runner import Runner

PRUNED = "worse than the median of the other trials"
"""Why a run stopped that was pruned; a checkpoint holds it, too."""


class TrialTimeout(TrainingError):
    """A trial took longer than it may (exit code 1)."""


class TrialCallback(Callback):
    """Hands each evaluation on, and ends the run when that, or the time, says so.

    Args:
        report: gets the metric and the epoch; returns whether the run is to end.
        timeout: seconds that the run may take, those of earlier parts included; None is no limit.
        deadline: :func:`time.monotonic` at which the run is interrupted; None is no limit.
    """

    def __init__(
        self,
        report: Callable[[float, int], bool],
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self.report, self.timeout, self.deadline = report, timeout, deadline

    def before_run(self, runner: Runner) -> None:
        split = runner.options.eval_split
        if split not in runner.splits:
            raise SpecError(
                f"evaluation.eval_split: the data has no split {split!r}, by which trials compare;"
                f" it has {', '.join(runner.splits)}"
            )

    def after_step(self, runner: Runner) -> None:
        if self.timeout is not None and runner.elapsed > self.timeout:
            raise TrialTimeout(f"took longer than {self.timeout:g} s, in epoch {_epoch(runner)}")
        if self.deadline is not None and time.monotonic() > self.deadline:
            runner.stop_requested = True

    def after_evaluate(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        assert runner.eval_key is not None
        if self.report(metrics[runner.eval_key], runner.state.epoch):
            runner.state.stop_reason = runner.state.stop_reason or PRUNED


def _epoch(runner: Runner) -> int:
    return runner.state.epoch + (1 if runner.state.batch else 0)
