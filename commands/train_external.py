"""A training loop of the user's own (``external_training_loop``) in place of the runner."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, SpecError, UsageError
from .train_result import WEIGHTS, TrainResult

if TYPE_CHECKING:
    from ..training.options import TrainerOptions
    from ..training.problem import Problem

_OF_TRAINER = ("optimizer", "scheduler", "eval_freq", "ema", "early_stopping_patience")
_OF_OPTIMIZER = ("optimizer", "weight_decay", "weight_decay_skip")
_OF_TRAINING = (
    "augmenter",
    "modeler",
    "callbacks",
    "warmup_epochs",
    "weight_decay",
    "weight_decay_skip",
    "trainable",
    "precision",
    "channels_last",
    "scale_learning_rate",
    "log_frequency",
    "summary_frequency",
    "checkpoint_frequency",
    "keep_checkpoints",
)
"""Keys that steer the runner, which does not run."""


def refuse_ignored(problem: Problem, resume: bool) -> None:
    """Refuse what a loop of the user's own cannot be made to do.

    It gets the network with its pretrained weights, on the device, the epochs and a validation; and
    ``data`` (the splits), ``loss``, ``optimizer``, ``device``, ``seed``, ``folder`` and ``resume``
    where its ``train`` has parameters of these names.

    Raises:
        SpecError: a key of the spec would have no effect; or there is no such loop.
        UsageError: ``resume``, which the loop does not take.
    """
    from ..specs.training import FullTrainerSection
    from ..training.components import parameters_of

    spec, name = problem.spec, problem.spec.external_training_loop
    known = parameters_of(getattr(external_loop(problem, make=False), "train", None))
    trainer = spec.full_trainer or FullTrainerSection()
    taken = {*(("augmenter",) if "data" in known else ())}
    taken |= {*(_OF_OPTIMIZER if "optimizer" in known and trainer.optimizer is not None else ())}
    wanted = [f"full_trainer.{key}" for key in _changed(trainer, _OF_TRAINER, taken)]
    wanted += [f"training.{key}" for key in _changed(problem.training, _OF_TRAINING, taken)]
    if wanted:
        raise SpecError(
            f"{problem.label}: external_training_loop {name!r} trains in place of Ingot; found"
            f" {', '.join(wanted)}, which it does not get",
            hint="leave these out and do it in the loop; its train() may take data and optimizer",
        )
    if resume and "resume" not in known:
        raise UsageError(
            f"{problem.label}: --resume: external_training_loop {name!r} cannot go on with a run:"
            " its train() has no parameter 'resume'",
            hint="--fresh starts over; or take resume and folder, the folder of the run",
        )


def _changed(section: Any, keys: tuple[str, ...], taken: Container[str]) -> list[str]:
    """Return the keys of a section, but those taken, that have another value than by default."""
    default = type(section)()
    changed = (key for key in keys if getattr(section, key) != getattr(default, key))
    return [key for key in changed if key not in taken]


def external_loop(problem: Problem, make: bool = True) -> Any:
    """Return the loop; its class, where it is one and is not to be made."""
    import inspect

    name = problem.spec.external_training_loop
    assert name is not None
    loop = problem.components.code.attribute(name, "external_training_loop")
    if not callable(getattr(loop, "train", None)):
        kind = loop.__name__ if inspect.isclass(loop) else f"a {type(loop).__name__}"
        raise SpecError(
            f"{problem.label}: external_training_loop {name!r}: found {kind} without train();"
            " expected train(model, epochs, validation, finetuning)"
        )
    if make and inspect.isclass(loop):
        return problem.components.call(loop, {}, "external_training_loop", name)
    return loop


def train_outside(
    problem: Problem, network: Any, options: TrainerOptions, folder: Path, *, resume: bool
) -> TrainResult:
    """Let the user's own loop train, measure what it returns, and write weights and result.

    Args:
        problem: names the loop and everything else.
        network: what is trained.
        options: of the spec; epochs, pretrained weights, seed and metric count.
        folder: gets the weights and the result.
        resume: handed to a loop that takes it.

    Raises:
        ModelError: the loop fails, or returns no model; the evaluation fails.
    """
    import time

    from ..training.assess import check_evaluation, evaluate_on, metric_key, user_code
    from ..training.components import parameters_of
    from ..training.networks import load_pretrained
    from ..training.randomness import seed_everything
    from ..training.torch_modeler import TorchModeler

    name = problem.spec.external_training_loop
    loop = external_loop(problem)
    split = problem.split(options.eval_split, "evaluation.eval_split")
    if options.pretrained is not None:
        load_pretrained(network, options.pretrained, options.pretrained_skip, problem.label)

    def modeler_of(model: Any) -> TorchModeler:
        return TorchModeler(model, problem.forward_pass, None, problem.evaluation, problem.device)

    def validation(model: Any) -> Mapping[str, float]:
        return evaluate_on(problem, model, split)[0].metrics

    modeler = modeler_of(network)  # which moves it to the device
    check_evaluation(problem, modeler, options)
    start = time.perf_counter()
    extras = _extras(problem, network, options, folder, parameters_of(loop.train))
    if "resume" in parameters_of(loop.train):
        extras["resume"] = resume
    seed_everything(problem.seed)
    with user_code(problem, f"external_training_loop {name!r}"):
        returned = loop.train(network, options.epochs, validation, False, **extras)
    if not hasattr(returned, "state_dict"):
        raise ModelError(
            f"{problem.label}: external_training_loop {name!r} returned a"
            f" {type(returned).__name__}; expected the model"
        )
    modeler = modeler_of(returned)
    found, _ = evaluate_on(problem, modeler.network, split)
    default = getattr(problem.evaluation, "default_key", None)
    key = metric_key(problem, found, options.eval_key, default)
    weights = folder / WEIGHTS
    modeler.write_weights(weights)
    result = TrainResult(
        problem.spec.name,
        folder,
        weights,
        found.metrics,
        key,
        {"value": found.metrics[key], "epoch": options.epochs},
        options.epochs,
        0,
        None,
        time.perf_counter() - start,
        problem.seed,
        str(problem.device),
    )
    result.write()
    return result


def _extras(
    problem: Problem, network: Any, options: TrainerOptions, folder: Path, known: Container[str]
) -> dict[str, Any]:
    """Return what a loop gets beyond Neutrino's four arguments; each is made when it is taken."""
    from ..training.torch_optim import make_optimizer, trained_parameters

    spec = problem.spec
    made: dict[str, Callable[[], Any]] = {
        "data": lambda: problem.splits,
        "device": lambda: problem.device,
        "seed": lambda: problem.seed,
        "folder": lambda: folder,
    }
    if spec.loss is not None or spec.task is not None:
        made["loss"] = lambda: problem.loss
    if options.optimizer is not None:
        made["optimizer"] = lambda: make_optimizer(
            options.optimizer,
            network,
            trained_parameters(network, (), "training.trainable"),
            components=problem.components,
            weight_decay=options.weight_decay,
            weight_decay_skip=options.weight_decay_skip,
        )
    return {name: make() for name, make in made.items() if name in known}
