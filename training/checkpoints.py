"""Checkpoints of a run, and its best weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .callbacks import Callback
from .runner import Runner


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
            # The folder of another machine need not hold what the first worker wrote.
            newest = runner.of_first(checkpoints_in(self.folder)[-1:])
            if newest:
                runner.read_checkpoint(newest[0])
                runner.last_checkpoint = newest[0]

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
        runner.require_finite()
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
