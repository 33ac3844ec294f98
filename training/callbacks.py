"""What is called around the steps of a run: checkpoints, averages, records, early stopping."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
        keep = getattr(runner.modeler, "keep_outputs", None)
        if keep is not None:
            keep()

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


class Checkpoints(Callback):
    """Writes checkpoints that a killed run goes on from, and the best weights.

    Args:
        folder: where they lie: ``checkpoint-STEP.safetensors`` and ``best.safetensors``.
        frequency: steps from one to the next; one at the end of each epoch in any case.
        keep: how many are kept.
        resume: go on from the newest.
    """

    def __init__(
        self, folder: Path, frequency: int | None = None, keep: int = 2, resume: bool = False
    ) -> None:
        self.folder = folder
        self.frequency, self.keep, self.resume = frequency, keep, resume

    def before_run(self, runner: Runner) -> None:
        if self.resume:
            newest = checkpoints_in(self.folder)
            if newest:
                runner.read_checkpoint(newest[-1])
                runner.last_checkpoint = newest[-1]

    def after_step(self, runner: Runner) -> None:
        if self.frequency is not None and runner.state.step % self.frequency == 0:
            self._write(runner)

    def after_evaluate(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        if runner.rank == 0 and runner.state.best_epoch == runner.state.epoch:
            runner.modeler.write_weights(self.folder / "best.safetensors")

    def after_epoch(self, runner: Runner) -> None:
        self._write(runner)

    def on_interrupt(self, runner: Runner) -> None:
        self._write(runner)

    def _write(self, runner: Runner) -> None:
        runner.flush()
        if not runner.modeler.is_finite():
            return  # the next loss will say so; the last good checkpoint stays
        path = self.folder / f"checkpoint-{runner.state.step:09d}.safetensors"
        runner.write_checkpoint(path)
        runner.last_checkpoint = path
        if runner.rank == 0:
            for old in checkpoints_in(self.folder)[: -self.keep]:
                old.unlink(missing_ok=True)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first."""
    pattern = re.compile(r"checkpoint-(\d+)\.safetensors")
    found = [(pattern.fullmatch(path.name), path) for path in folder.glob("checkpoint-*")]
    return [path for _, path in sorted((int(m[1]), path) for m, path in found if m is not None)]


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
