"""TensorBoard files of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError
from .callbacks import Callback
from .runner import Runner


class SummaryCallback(Callback):
    """Writes losses, learning rate, speed and metrics for TensorBoard.

    Args:
        folder: the folder of the run; the files lie in its ``tensorboard``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder) / "tensorboard"
        self._writer: Any = None

    def before_run(self, runner: Runner) -> None:
        if runner.rank:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "the callback 'summary' needs tensorboard, which is not installed",
                hint="pip install 'ingot[train]'",
            ) from error
        # What a killed run wrote after its last checkpoint is not shown.
        self._writer = SummaryWriter(str(self.folder), purge_step=runner.state.step + 1)

    def on_record(self, runner: Runner, record: Mapping[str, float]) -> None:
        every = runner.options.summary_frequency
        if self._writer is None or (every is not None and runner.state.step % every):
            return
        for name, value in record.items():
            self._writer.add_scalar(f"train/{name}", value, runner.state.step)

    def after_evaluate(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(f"eval/{name}", value, runner.state.step)

    def after_epoch(self, runner: Runner) -> None:
        if self._writer is not None:
            self._writer.flush()

    def after_run(self, runner: Runner) -> None:
        if self._writer is not None:
            self._writer.close()
