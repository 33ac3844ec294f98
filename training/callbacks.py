"""What is called around the steps of a run: records, averages, early stopping."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .runner import Runner


class Callback:
    """Does something around the steps of a run; every method may be left as it is."""

    def before_run(self, runner: Runner) -> None:
        """Run before the first step."""

    def before_step(self, runner: Runner) -> None:
        """Run before each step."""

    def after_step(self, runner: Runner) -> None:
        """Run after each step."""

    def after_evaluate(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Run after each evaluation."""

    def after_epoch(self, runner: Runner) -> None:
        """Run after each epoch, and its evaluation."""

    def after_run(self, runner: Runner) -> None:
        """Run after the last step of a run that was not interrupted."""

    def on_interrupt(self, runner: Runner) -> None:
        """Run when a run is interrupted between two steps."""

    def record(self, runner: Runner, batch: Any) -> Mapping[str, float]:
        """Return numbers for the record of the last steps."""
        return {}

    def on_record(self, runner: Runner, record: Mapping[str, float]) -> None:
        """Show or store a record, which all callbacks have filled."""

    def state(self) -> dict[str, Any]:
        """Return what has to be in a checkpoint, in JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned."""


class LossCallback(Callback):
    """Records the loss of the last step, and its parts where there are several."""

    def record(self, runner: Runner, batch: Any) -> Mapping[str, float]:
        return dict(runner.losses) if len(runner.losses) > 2 else {"loss": runner.losses["loss"]}


class AccuracyCallback(Callback):
    """Records the accuracy of the last training batch, in percent."""

    def before_run(self, runner: Runner) -> None:
        runner.modeler.keep_outputs()

    def record(self, runner: Runner, batch: Any) -> Mapping[str, float]:
        accuracy = runner.modeler.batch_accuracy(batch)
        return {} if accuracy is None else {"train_accuracy": accuracy}


class SpeedCallback(Callback):
    """Records samples a second since the last record, of all workers together."""

    def __init__(self) -> None:
        self._time, self._samples = 0.0, 0

    def before_run(self, runner: Runner) -> None:
        self._time, self._samples = time.perf_counter(), runner.samples

    def after_epoch(self, runner: Runner) -> None:
        self.before_run(runner)  # the evaluation does not count

    def record(self, runner: Runner, batch: Any) -> Mapping[str, float]:
        now = time.perf_counter()
        seconds, samples = now - self._time, runner.samples - self._samples
        self._time, self._samples = now, runner.samples
        return {"samples_per_second": samples / seconds if seconds > 0 else 0.0}


class EarlyStopping(Callback):
    """Stops after some evaluations without improvement of the metric that counts.

    Args:
        patience: how many.
    """

    def __init__(self, patience: int = 5) -> None:
        if patience < 1:
            raise UsageError(f"early_stopping: patience: found {patience}; expected at least 1")
        self.patience = patience
        self._best: float | None = None
        self._waited = 0

    def after_evaluate(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        assert runner.eval_key is not None
        value = metrics[runner.eval_key]
        if runner.is_better(value, self._best):
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            runner.state.stop_reason = (
                f"no improvement of {runner.eval_key} in {self._waited} evaluations"
            )

    def state(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._best, self._waited = state["best"], state["waited"]
        if self._waited >= self.patience:  # it had stopped the run, which goes on all the same
            self._waited = 0


class Ema(Callback):
    """Keeps an exponential moving average of the weights, which is evaluated and written.

    Args:
        decay_rate: weight of the past; in the first steps less, ``(1 + n) / (10 + n)``.
        period: steps from one update to the next.
    """

    def __init__(self, decay_rate: float = 0.9999, period: int = 1) -> None:
        self.decay_rate, self.period = decay_rate, period

    def before_run(self, runner: Runner) -> None:
        runner.modeler.start_average()

    def after_step(self, runner: Runner) -> None:
        if runner.state.step % self.period == 0:
            runner.modeler.update_average(self.decay_rate)
