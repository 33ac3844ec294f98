"""The sections that say how a network is trained, between search steps and on its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from .declare import Component, Rule, Section, key
from .nodes import Node


@dataclass(frozen=True)
class EmaSection(Section):
    """Exponential moving average of the weights."""

    also: ClassVar[tuple[dict[str, Any], ...]] = ({"type": "boolean"},)

    decay_rate: float = key(
        Rule("Weight of the past, in 0..1.", minimum=0, maximum=1), default=0.9999
    )
    period: int = key(Rule("Steps from one update to the next.", minimum=1), default=1)

    @classmethod
    def prepare(cls, node: Node) -> Node:
        """Read true as the defaults and false as none."""
        if isinstance(node.value, bool):
            return node.with_value({} if node.value else None)
        return node


@dataclass(frozen=True)
class SchedulerSection(Section):
    """A learning-rate schedule and when it steps."""

    shorthand: ClassVar[str] = "factory"
    also: ClassVar[tuple[dict[str, Any], ...]] = (
        {"type": "string"},
        {"type": "object", "required": ["name"]},
    )

    factory: Component = key("The scheduler: `{name, **kwargs}`, a name or `module:attribute`.")
    eval_based: bool = key("It listens to the evaluation metric.", default=False)
    interval: Literal["eval", "epoch", "iteration"] | None = key(
        "When it steps; `eval` for `eval_based`, else `epoch`.", default=None
    )

    @classmethod
    def prepare(cls, node: Node) -> Node:
        """Read ``{name, **kwargs}`` as the factory."""
        if isinstance(node.value, dict) and "name" in node.value and "factory" not in node.value:
            return node.with_value({"factory": node})
        return super().prepare(node)

    def checked(self, node: Node) -> Self:
        """Settle the interval."""
        interval = self.interval or ("eval" if self.eval_based else "epoch")
        if self.eval_based and interval != "eval":
            raise node.at("interval").error(
                f"found {interval!r} beside eval_based: true; expected 'eval'"
            )
        return replace(self, interval=interval, eval_based=interval == "eval")


@dataclass(frozen=True)
class FullTrainerSection(Section):
    """Full training: what made the reference, and what ends a search."""

    optimizer: Component | None = key(
        "The optimizer: `{name: SGD, lr: 0.1}`, a name or `module:attribute`.", default=None
    )
    scheduler: SchedulerSection | None = key("The learning-rate schedule.", default=None)
    epochs: int | None = key(Rule("Number of epochs.", minimum=0), default=None)
    eval_freq: int = key(Rule("Epochs from one evaluation to the next.", minimum=1), default=1)
    eval_key: str | None = key(
        "The metric that decides; `evaluation.eval_key` when that is given.", default=None
    )
    eval_split: str | None = key(
        "The split that it is measured on; `evaluation.eval_split` when that is given.",
        default=None,
    )
    ema: EmaSection | None = key("Weight averaging; `true` is its defaults.", default=None)
    early_stopping_patience: int | None = key(
        Rule("Evaluations without improvement before training stops.", minimum=1), default=None
    )


@dataclass(frozen=True)
class LoopParams(Section):
    """The loop of a fine tuner."""

    epochs: int | None = key(Rule("Number of epochs.", minimum=0), default=None)
    optimizer: Component | None = key("The optimizer.", default=None)


@dataclass(frozen=True)
class FineTunerSection(Section):
    """Short training between the steps of a search."""

    loop_params: LoopParams = key("Its loop.", default_factory=LoopParams)


@dataclass(frozen=True)
class TrainingSection(Section):
    """The parts of a training run, and its options beyond ``full_trainer``."""

    inputter: Component | None = key("Reads, shuffles and batches the data.", default=None)
    augmenter: Component | None = key("Changes training samples at random.", default=None)
    network: Component | None = key("The network, when `model` does not name it.", default=None)
    modeler: Component | None = key("Forward pass, loss and metrics.", default=None)
    callbacks: tuple[Component, ...] = key(
        "Logging, checkpoints, summaries and display, by name.", default=()
    )
    predictor: Component | None = key(
        "What makes predictions of samples; that of the task by default.", default=None
    )
    test_samples: tuple[str, ...] = key(
        Rule("Files or texts that `infer` runs when none are given.", single="item"), default=()
    )
    batch_size: int | None = key(Rule("Samples a step and device.", minimum=1), default=None)
    warmup_epochs: float = key(
        Rule("Epochs in which the learning rate rises to its start.", minimum=0), default=0.0
    )
    weight_decay: float | None = key(Rule("L2 penalty of the weights.", minimum=0), default=None)
    weight_decay_skip: tuple[str, ...] = key(
        Rule("Parts of parameter names that get no weight decay.", single="item"), default=()
    )
    pretrained: Path | None = key(
        Rule("Weights to start from: safetensors or a weights-only checkpoint.", exists="file"),
        default=None,
    )
    pretrained_skip: tuple[str, ...] = key(
        Rule("Parts of parameter names that are not restored.", single="item"), default=()
    )
    trainable: tuple[str, ...] = key(
        Rule("Parts of parameter names that are trained; all when empty.", single="item"),
        default=(),
    )
    precision: Literal["fp32", "bf16"] = key(
        "Type that the forward pass is computed in while training (bf16: autocast).",
        default="fp32",
    )
    channels_last: bool = key("Keep images and filters channels-last in memory.", default=False)
    scale_learning_rate: bool = key(
        "Multiply the learning rate by the number of workers.", default=False
    )
    model_dir: Path | None = key("Folder of checkpoints and summaries.", default=None)
    log_frequency: int | None = key(
        Rule("Steps from one log line to the next.", minimum=1), default=None
    )
    summary_frequency: int | None = key(
        Rule("Steps from one summary to the next.", minimum=1), default=None
    )
    checkpoint_frequency: int | None = key(
        Rule("Steps from one checkpoint to the next.", minimum=1), default=None
    )
    keep_checkpoints: int | None = key(
        Rule("How many checkpoints are kept.", minimum=1), default=None
    )
