"""The runner of the suite: ``ingot train``, ``evaluate`` and ``infer --files`` of one spec."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..reports.numbers import plain
from ..specs import ModelSpec
from .demos_parts import Callback, Inputter, Modeler
from .demos_spec import make_spec

if TYPE_CHECKING:
    from ..training.progress import TrainProgress

_LINES = {
    "train_loss": "loss",
    "train_accuracy": "train_accuracy",
    "train_speed": "samples_per_second",
}
"""What the lines of a training run show, by callback."""
_SAME = ("mode", "batch_size_per_gpu", "gpu_count")


class Runner:
    """Runs an application: trains, evaluates or predicts, as the mode says.

    Args:
        name: ``parameter_server_runner``.
        config: a ``RunnerConfig``.
        inputter: the data.
        modeler: the network.
        callbacks: what is done around the steps.

    Raises:
        UsageError: the configurations of the parts do not go together.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        inputter: Inputter,
        modeler: Modeler,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        _require(inputter, Inputter, "an inputter")
        _require(modeler, Modeler, "a modeler")
        for callback in callbacks:
            _require(callback, Callback, "a callback")
        parts: list[Any] = [inputter, modeler, *callbacks]
        for part in parts:
            for key in _SAME:
                if getattr(part.config, key) != getattr(config, key):
                    raise UsageError(
                        f"{part.name}: {key}: found {getattr(part.config, key)!r}; the runner has"
                        f" {getattr(config, key)!r}"
                    )
        if inputter.config.num_classes != modeler.config.num_classes:
            raise UsageError(
                f"num_classes: the inputter has {inputter.config.num_classes}, the modeler"
                f" {modeler.config.num_classes}"
            )
        self.name, self.config = name, config
        self.inputter, self.modeler, self.callbacks = inputter, modeler, list(callbacks)

    @property
    def spec(self) -> ModelSpec:
        """The application as a spec: what ``ingot train`` and every other command take."""
        weights = self._weights if self.config.mode != "train" else None
        return make_spec(self.inputter, self.modeler, self.callbacks, weights)

    @property
    def _folder(self) -> Path | None:
        found = next((it.config.model_dir for it in self.callbacks if it.config.model_dir), None)
        return None if found is None else Path(found).expanduser()

    @property
    def _weights(self) -> Path:
        if self._folder is None:
            raise UsageError(f"model_dir: found nothing; the mode {self.config.mode!r} needs it")
        return self._folder / "weights.safetensors"

    def run(self) -> Any:
        """Run the application.

        Returns:
            what :func:`ingot.train`, :func:`ingot.evaluate` or :func:`ingot.infer` of files
            return. Training goes on from the newest checkpoint in ``model_dir``, as the suite does.

        Raises:
            IngotError: see there.
        """
        run = {"train": self._train, "eval": self._evaluate, "infer": self._infer}
        return run[self.config.mode]()

    def _train(self) -> Any:
        from ..commands.train import train

        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        result = train(self.spec, self._folder, resume=True, progress=self._print)
        self._use(result.weights)
        return result

    def _evaluate(self) -> Any:
        from ..commands.evaluate import evaluate

        spec = self.spec
        result = evaluate(spec)
        self._use(self._weights)
        shown = dict(result.entries[0].metrics)
        if any(callback.name == "eval_loss" for callback in self.callbacks):
            shown = {"loss": self._mean_loss(), **shown}
        _say("  ".join(f"{name} {plain(value)}" for name, value in shown.items()))
        return result

    def _mean_loss(self) -> float:
        total = samples = 0.0
        for batch in self.inputter.input_fn():
            total += float(self.modeler.model_fn(batch)["loss"]) * len(batch[0])
            samples += len(batch[0])
        return total / samples

    def _infer(self) -> Any:
        from ..commands.infer_files import infer_files

        self._use(self._weights)
        shows = any(callback.name.startswith("infer_display") for callback in self.callbacks)
        display = self._weights.parent / "infer" if shows else None
        result = infer_files(self.spec, display=display, force=True)
        for prediction in result.predictions:
            _say(prediction.line())
        return result

    def _use(self, weights: Path) -> None:
        """Let the modeler's network have the weights of the run."""
        self.modeler.weights = weights
        for name in ("problem", "network"):
            vars(self.modeler).pop(name, None)

    def _print(self, event: TrainProgress) -> None:
        if event.kind != "step":
            return
        names = {it.name for it in self.callbacks}
        shown = [
            f"{record} {plain(event.record[record])}"
            for name, record in _LINES.items()
            if name in names and record in event.record
        ]
        total = "" if event.total_steps is None else f" of {event.total_steps}"
        _say("  ".join([f"step {event.step}{total}", *shown]))


def _require(part: Any, kind: type, said: str) -> None:
    if not isinstance(part, kind):
        raise UsageError(
            f"runner: found a {type(part).__name__}; expected what build() of {said} returns"
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
