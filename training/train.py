"""Train the network of a problem: what ``ingot train`` and the searches call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..specs.declare import Component
from ..specs.sections import EvaluationSection
from .assess import check_evaluation, user_code
from .callback_options import AS_OPTIONS
from .callbacks import Callback, EarlyStopping, Ema, LossCallback, SpeedCallback
from .checkpoints import Checkpoints, checkpoints_in
from .declared import DeclaredTensors
from .distributed import Workers, alone
from .inputter import Inputter
from .modeler import Modeler
from .options import TrainerOptions, plain
from .problem import Problem
from .progress import ProgressCallback, TrainProgress
from .run_state import RunState
from .runner import Runner
from .trainers import trainer_of

_ALWAYS = (
    "basic",
    "checkpoint",
    "loss",
    "progress",
    "speed",
    "train_basic",
    "train_loss",
    "train_speed",
)
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
    extra_callbacks: Sequence[Callback] = (),
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
        extra_callbacks: called after those that the problem names.

    Raises:
        TrainingError: the loss, or a weight, is NaN or infinite.
        TrainingInterrupted: it was asked to stop.
        UsageError: networks of its framework cannot be trained, or the newest checkpoint cannot be
            gone on with under these options.
        SpecError: the data, or the network, has other shapes than the spec declares.
        IngotError: data, loss or metrics fail.
    """
    modeler_class, runner_class = trainer_of(problem.spec.model.framework, problem.label)
    problem.split("train", "data.splits")
    listens = options.early_stopping_patience is not None or options.interval == "eval"
    if listens or options.eval_split != EvaluationSection().eval_split:
        problem.split(options.eval_split, "evaluation.eval_split")
    modeler = _modeler(problem, network, options, modeler_class)
    if options.pretrained is not None:
        initial = modeler.load_pretrained(
            options.pretrained, options.pretrained_skip, problem.label
        )
        if initial:
            logging.getLogger("ingot").info(
                "%s: %d tensors keep their initial values (%s)",
                options.pretrained,
                len(initial),
                ", ".join(initial[:3]) + (", ..." if len(initial) > 3 else ""),
            )
    runner = runner_class(
        modeler,
        problem.splits,
        options,
        [*_callbacks(problem, options, folder, resume, report), *extra_callbacks],
        components=problem.components,
        workers=workers,
        recipe=_recipe(problem),
    )
    if watch is not None:
        watch(runner)
    goes_on = resume and folder is not None and bool(checkpoints_in(folder))
    place = workers or Workers()
    with modeler.comparing(DeclaredTensors.of(problem.spec)):
        if not goes_on and place.is_first:
            with alone(place.count):
                check_evaluation(problem, modeler, options)
        inputter = problem.splits["train"]
        if folder is not None and place.is_first and isinstance(inputter, Inputter):
            inputter.keep(folder, goes_on)
        with user_code(problem, "training"):
            state = runner.run()
    return Trained(modeler, state, runner.eval_key)


def _modeler(
    problem: Problem, network: Any, options: TrainerOptions, built_in: type[Modeler]
) -> Modeler:
    wanted = problem.training.modeler or Component("default")
    context = {
        "network": network,
        "forward_pass": problem.forward_pass,
        "loss": problem.loss,
        "evaluation": problem.evaluation,
        "device": options.device,
        "precision": options.precision,
        "channels_last": options.channels_last,
        "source": problem.source,
    }
    key = "training.modeler"
    components = problem.components
    found: Modeler
    if wanted.name == "default":
        found = components.call(built_in, wanted.kwargs, key, wanted.name, **context)
    else:
        found = components.make("modeler", wanted, key, **context)
    return found


def _recipe(problem: Problem) -> dict[str, Any]:
    """Return what the spec says of the data, for a run that goes on to compare."""
    data, training = problem.spec.data, problem.training
    found = {
        "data": None if data is None else {"splits": data.splits, **plain(data.kwargs)},
        "inputter": plain(training.inputter),
        "augmenter": plain(training.augmenter),
        "loss": plain(problem.spec.loss),
    }
    if training.batch_size is not None:  # a loader of the user's own may not tell
        found["batch_size"] = training.batch_size
    return found


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
        if wanted.name in _ALWAYS or wanted.name in AS_OPTIONS:
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
