"""Train the network of a problem: what ``ingot train`` and the searches call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..specs.declare import Component
from ..specs.sections import EvaluationSection
from .assess import user_code
from .callbacks import (
    Callback,
    Checkpoints,
    EarlyStopping,
    Ema,
    LossCallback,
    ProgressCallback,
    SpeedCallback,
    TrainProgress,
)
from .distributed import Workers
from .modeler import Modeler
from .options import TrainerOptions
from .problem import Problem, load_pretrained
from .runner import Runner, RunState

_ALWAYS = ("basic", "checkpoint", "loss", "progress", "speed", "train_basic")
"""Names of callbacks that every run has."""


@dataclass(frozen=True)
class Trained:
    """A network that was trained.

    Attributes:
        modeler: it, with its loss and metrics.
        state: where the run ended.
        eval_key: the metric that counts.
    """

    modeler: Modeler
    state: RunState
    eval_key: str | None


def train_network(
    problem: Problem,
    network: Any,
    options: TrainerOptions,
    *,
    folder: Path | None = None,
    resume: bool = False,
    report: Callable[[TrainProgress], None] | None = None,
    watch: Callable[[Runner], None] | None = None,
    workers: Workers | None = None,
) -> Trained:
    """Train a network with the data, the loss and the metrics of a problem.

    Args:
        problem: names everything.
        network: the framework's model; trained in place.
        options: how it is trained.
        folder: where checkpoints and summaries go; None writes none.
        resume: go on from the newest checkpoint there.
        report: gets a :class:`TrainProgress` now and then.
        watch: gets the runner before it starts; it may set ``stop_requested`` later.
        workers: the place of this process among those that train together.

    Raises:
        TrainingError: the loss is NaN or infinite.
        TrainingInterrupted: it was asked to stop.
        IngotError: data, loss or metrics fail.
    """
    from .torch_runner import TorchRunner

    problem.split("train", "data.splits")
    listens = options.early_stopping_patience is not None or options.interval == "eval"
    if listens or options.eval_split != EvaluationSection().eval_split:
        problem.split(options.eval_split, "evaluation.eval_split")
    if options.pretrained is not None:
        initial = load_pretrained(
            network, options.pretrained, options.pretrained_skip, problem.label
        )
        if initial:
            logging.getLogger("ingot").info(
                "%s: %d tensors keep their initial values (%s)",
                options.pretrained,
                len(initial),
                ", ".join(initial[:3]) + (", ..." if len(initial) > 3 else ""),
            )
    modeler = _modeler(problem, network, options)
    runner = TorchRunner(
        modeler,
        problem.splits,
        options,
        _callbacks(problem, options, folder, resume, report),
        components=problem.components,
        workers=workers,
    )
    if watch is not None:
        watch(runner)
    with user_code(problem, "training"):
        state = runner.run()
    return Trained(modeler, state, runner.eval_key)


def _modeler(problem: Problem, network: Any, options: TrainerOptions) -> Any:
    wanted = problem.training.modeler or Component("default")
    return problem.components.make(
        "modeler",
        wanted,
        "training.modeler",
        network=network,
        forward_pass=problem.forward_pass,
        loss=problem.loss,
        evaluation=problem.evaluation,
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
    )


def _callbacks(
    problem: Problem,
    options: TrainerOptions,
    folder: Path | None,
    resume: bool,
    report: Callable[[TrainProgress], None] | None,
) -> list[Callback]:
    """Return the callbacks: the average first, checkpoints last, as they hold what others did."""
    found: list[Callback] = []
    if options.ema is not None:
        found.append(Ema(*options.ema))
    if options.early_stopping_patience is not None:
        found.append(EarlyStopping(options.early_stopping_patience))
    found += [LossCallback(), SpeedCallback()]
    for wanted in problem.training.callbacks:
        if wanted.name in _ALWAYS:
            continue
        context = {} if folder is None else {"folder": folder}
        made = problem.components.make("callback", wanted, "training.callbacks", **context)
        if not isinstance(made, Callback):
            raise SpecError(
                f"{problem.label}: training.callbacks: {wanted.name!r} is a"
                f" {type(made).__name__}; expected a Callback"
            )
        found.append(made)
    if report is not None:
        found.append(ProgressCallback(report))
    if folder is not None:
        found.append(
            Checkpoints(folder, options.checkpoint_frequency, options.keep_checkpoints, resume)
        )
    return found
