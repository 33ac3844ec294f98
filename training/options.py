"""How a network is trained: the options of ``full_trainer`` and ``training`` in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..runtime.sources import spec_label
from ..specs import ModelSpec
from ..specs.declare import Component
from ..specs.training import FullTrainerSection, TrainingSection
from .callback_options import options_of_callbacks
from .device import Device

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainerOptions:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split.
        optimizer: ``{name, **kwargs}``, a factory object or a function of the network.
        scheduler: likewise, a function of the optimizer; None keeps the learning rate.
        interval: when the scheduler steps: after an evaluation, an epoch or an iteration.
        eval_freq: epochs from one evaluation to the next.
        eval_key: the metric that counts; the evaluation's own by default.
        eval_split: the split that is evaluated.
        higher_is_better: whether a larger value of it is better.
        ema: decay rate and period of the weight averaging.
        early_stopping_patience: evaluations without improvement before training stops.
        warmup_epochs: epochs in which the learning rate rises to what the scheduler says.
        weight_decay: L2 penalty; None leaves that of the optimizer.
        weight_decay_skip: parts of names of parameters that get none.
        trainable: parts of names of parameters that are trained; all when empty.
        pretrained: weights to start from.
        pretrained_skip: parts of names that are not restored.
        precision: ``bf16`` computes the forward pass under autocast.
        channels_last: keep images and filters channels-last in memory.
        scale_learning_rate: multiply the learning rate by the number of workers.
        learning_rate_factor: multiply the learning rate that the optimizer was made with by it.
        seed: of everything that is random.
        device: where to train.
        log_frequency: steps from one record to the next; None is about two a second.
        summary_frequency: steps from one summary to the next; None is every record.
        checkpoint_frequency: steps between checkpoints; None is one at the end of each epoch.
        keep_checkpoints: how many of them are kept.
    """

    epochs: int = 1
    optimizer: Any = None
    scheduler: Any = None
    interval: Literal["eval", "epoch", "iteration"] = "epoch"
    eval_freq: int = 1
    eval_key: str | None = None
    eval_split: str = "test"
    higher_is_better: bool = True
    ema: tuple[float, int] | None = None
    early_stopping_patience: int | None = None
    warmup_epochs: float = 0.0
    weight_decay: float | None = None
    weight_decay_skip: tuple[str, ...] = ()
    trainable: tuple[str, ...] = ()
    pretrained: Path | None = None
    pretrained_skip: tuple[str, ...] = ()
    precision: Precision = "fp32"
    channels_last: bool = False
    scale_learning_rate: bool = False
    learning_rate_factor: float = 1.0
    seed: int = 0
    device: Device = Device.CPU
    log_frequency: int | None = None
    summary_frequency: int | None = None
    checkpoint_frequency: int | None = None
    keep_checkpoints: int = 2

    @classmethod
    def from_spec(cls, spec: ModelSpec, **changes: Any) -> TrainerOptions:
        """Read the options of a spec; ``changes`` that are not None come before it.

        Raises:
            SpecError: a callback that is an option, too, has other arguments.
        """
        trainer = spec.full_trainer or FullTrainerSection()
        training = spec.training or TrainingSection()
        schedule = trainer.scheduler
        options = cls(
            epochs=1 if trainer.epochs is None else trainer.epochs,
            optimizer=trainer.optimizer,
            scheduler=None if schedule is None else schedule.factory,
            interval="epoch" if schedule is None else schedule.interval or "epoch",
            eval_freq=trainer.eval_freq,
            eval_key=spec.evaluation.eval_key or trainer.eval_key,
            eval_split=spec.evaluation.eval_split,
            higher_is_better=spec.evaluation.higher_is_better,
            ema=None if trainer.ema is None else (trainer.ema.decay_rate, trainer.ema.period),
            early_stopping_patience=trainer.early_stopping_patience,
            warmup_epochs=training.warmup_epochs,
            weight_decay=training.weight_decay,
            weight_decay_skip=training.weight_decay_skip,
            trainable=training.trainable,
            pretrained=training.pretrained,
            pretrained_skip=training.pretrained_skip,
            precision=training.precision,
            channels_last=training.channels_last,
            scale_learning_rate=training.scale_learning_rate,
            log_frequency=training.log_frequency,
            summary_frequency=training.summary_frequency,
            checkpoint_frequency=training.checkpoint_frequency,
            keep_checkpoints=training.keep_checkpoints or 2,
        )
        set_by_callbacks = options_of_callbacks(
            training.callbacks,
            {"ema": options.ema, "early_stopping_patience": options.early_stopping_patience},
            spec_label(spec),
        )
        options = replace(options, **set_by_callbacks)
        return replace(options, **{key: item for key, item in changes.items() if item is not None})

    def recipe(self) -> dict[str, Any]:
        """Return what decides the weights, in JSON values, for a run that goes on to compare.

        The optimizer's arguments are not in it: they are compared as the optimizer has them.
        """
        return {
            name: plain(value) for name, value in asdict(self).items() if name not in _NO_RECIPE
        }


_NO_RECIPE = {
    "epochs",
    "optimizer",
    "weight_decay",
    "scale_learning_rate",
    "pretrained",
    "pretrained_skip",
    "log_frequency",
    "summary_frequency",
    "checkpoint_frequency",
    "keep_checkpoints",
}
"""What changes nothing in the rest of a run, or is compared otherwise."""


def plain(value: Any) -> Any:
    """Return JSON values of an option; of an object, what it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Component):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(name): plain(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    return str(value) if isinstance(value, Path) else type(value).__name__
