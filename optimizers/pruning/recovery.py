"""Short training after a step of the search, so that the network gets used to its channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ...specs import ModelSpec
from ...specs.declare import Component
from ...training.callbacks import Callback
from ...training.inputter import Inputter
from ...training.options import TrainerOptions
from ...training.problem import Problem
from ...training.train import train_network
from ..budget import Budget, StopSearch
from .distillation import Distilled

if TYPE_CHECKING:
    from torch import nn

    from ...training.distributed import Workers

DEFAULT_OPTIMIZER = Component("SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4})
"""What trains where neither ``fine_tuner`` nor ``full_trainer`` names an optimizer."""
_SCORES = ("CrossEntropy", "CrossEntropyLoss", "SegmentationCrossEntropy")
_BUILT_IN = ("cosine", "one_cycle")
"""Schedules that end with the run, however short it is."""
RATE_PER_EPOCH = 0.1
"""Factor of a learning rate that is one for a long training, for each epoch of a short one: at its
height a short one would only undo what the network has learned."""


@dataclass(frozen=True)
class Recovered:
    """What a short training did.

    Attributes:
        epochs: that were trained.
        losses: the mean loss of each.
    """

    epochs: int
    losses: tuple[float, ...]


def recovery_options(
    spec: ModelSpec, epochs: int, has_length: bool, **changes: Any
) -> TrainerOptions:
    """Return how a step of the search is trained.

    The optimizer is that of ``fine_tuner``, else that of ``full_trainer``. A schedule that ends
    with the run is kept; any other is one of a long training, and a cosine stands in for it.
    Weights are not averaged and nothing stops early: a step is short.

    Args:
        spec: says how the network is trained in full.
        epochs: of one step.
        has_length: the training split says how many batches it has.
        changes: options that come before those of the spec.
    """
    loop = spec.fine_tuner.loop_params if spec.fine_tuner is not None else None
    if any(stage.use_horovod for stage in spec.optimization):
        changes = {"scale_learning_rate": True, **changes}
    options = TrainerOptions.from_spec(spec, epochs=epochs, **changes)
    given = loop.optimizer if loop is not None else None
    schedule = options.scheduler
    name = getattr(schedule, "name", None)
    interval = options.interval
    if interval == "eval" or name not in _BUILT_IN:
        schedule = Component("cosine")
        interval, name = "epoch", schedule.name
    if has_length and name in _BUILT_IN:
        # By epochs, a schedule of two of them would end at half of its height.
        interval = "iteration"
    return replace(
        options,
        optimizer=given or options.optimizer or DEFAULT_OPTIMIZER,
        scheduler=schedule,
        interval=interval,
        ema=None,
        early_stopping_patience=None,
        pretrained=None,
        pretrained_skip=(),
        eval_split="test",
        warmup_epochs=min(options.warmup_epochs, epochs / 4),
    )


def first_rate(spec: ModelSpec, epochs: int = 2) -> float:
    """Return the factor of the learning rate that a search begins with.

    That of ``fine_tuner`` is taken as it is; that of ``full_trainer`` is one for a long training.

    Args:
        spec: says how the network is trained in full.
        epochs: of one step.
    """
    loop = spec.fine_tuner.loop_params if spec.fine_tuner is not None else None
    if loop is not None and loop.optimizer is not None:
        return 1.0
    trainer = spec.full_trainer
    if trainer is None or trainer.optimizer is None:
        return 1.0
    return min(1.0, RATE_PER_EPOCH * epochs)


class _Watch(Callback):
    """Keeps the mean loss of each epoch, and ends the run when the search has to end.

    The runner resets its sums of losses when it evaluates; here nothing is evaluated.
    """

    def __init__(self, budget: Budget, report: Callable[[int, float], None]) -> None:
        self.losses: list[float] = []
        self._budget = budget
        self._report = report

    def state(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.losses = list(state["losses"])

    def after_step(self, runner: Any) -> None:
        if self._budget.stop_requested or self._budget.is_late:
            runner.stop_requested = True

    def after_epoch(self, runner: Any) -> None:
        state = runner.state
        self.losses.append(state.loss_sum / max(1, state.loss_count))
        state.loss_sum, state.loss_count = 0.0, 0
        self._report(state.epoch, self.losses[-1])


def recover(
    problem: Problem,
    network: nn.Module,
    teacher: nn.Module | None,
    options: TrainerOptions,
    budget: Budget,
    folder: Path,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
    workers: Workers | None = None,
) -> Recovered:
    """Train a network in place; what was trained before the search was killed is not lost.

    Args:
        problem: has data and loss.
        network: the pruned one.
        teacher: what it learns from besides the labels; None for labels only.
        options: how; ``seed`` decides the order of the data.
        budget: when it is spent, training ends.
        folder: of its checkpoints; it is removed when the training is complete.
        report: called after each epoch with its number and mean loss.
        workers: the place of this process among those that train together.

    Raises:
        StopSearch: the time is over, or somebody asked to end the search.
        TrainingError: the loss is no number.
    """
    from ...errors import TrainingInterrupted

    if not options.epochs:
        return Recovered(0, ())
    watch = _Watch(budget, report)
    training = _training_problem(problem, options.seed)
    distilled = None
    if teacher is not None:
        name = type(problem.loss).__name__
        inner = type(getattr(problem.loss, "module", None)).__name__
        scores = name in _SCORES or inner in _SCORES
        distilled = Distilled(problem.loss, network, teacher, scores)
        training.loss = distilled
    folder.mkdir(parents=True, exist_ok=True)
    try:
        train_network(
            training,
            network,
            options,
            folder=folder,
            resume=True,
            workers=workers,
            extra_callbacks=(watch,),
        )
    except TrainingInterrupted as error:
        raise StopSearch("signal" if budget.stop_requested else "max_time") from error
    finally:
        if distilled is not None:
            distilled.close()
    network.eval()
    return Recovered(options.epochs, tuple(watch.losses))


def recover_outside(problem: Problem, network: nn.Module, loop: Any, epochs: int) -> nn.Module:
    """Let the user's own loop train; see ``external_training_loop``.

    Raises:
        ModelError: it returns no model.
    """
    from ...training.assess import evaluate_on, user_code

    split = problem.split(problem.spec.evaluation.eval_split, "evaluation.eval_split")

    def validation(model: Any) -> Mapping[str, float]:
        return evaluate_on(problem, model, split)[0].metrics

    with user_code(problem, "external_training_loop"):
        returned = loop.train(network, epochs, validation, True)
    if not hasattr(returned, "state_dict"):
        raise ModelError(
            f"{problem.label}: external_training_loop returned a {type(returned).__name__};"
            " expected the model"
        )
    found: nn.Module = returned.eval()
    return found


def _training_problem(problem: Problem, seed: int) -> Problem:
    """Return a problem with the training split only, in an order of its own."""
    loader: Any = problem.splits["train"]
    if isinstance(loader, Inputter):
        loader = copy.copy(loader)
        loader.seed = seed
    found = copy.copy(problem)
    found.splits = {"train": loader}
    return found
