"""Training and evaluation of Python objects in place of a spec: what a notebook calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import UsageError
from ..specs import ModelSection, ModelSpec
from ..specs.hints import did_you_mean
from . import networks
from .assess import evaluate_on
from .components import accepted
from .data import Splits
from .device import Device, as_device
from .evaluation import Evaluation
from .forward_pass import ForwardPass
from .options import TrainerOptions
from .problem import Problem
from .progress import TrainProgress
from .train import Trained, train_network

_TRAINER_KEYS = (
    "optimizer",
    "scheduler",
    "epochs",
    "eval_freq",
    "eval_key",
    "eval_split",
    "ema",
    "early_stopping_patience",
)
_SCHEDULER_KEYS = ("factory", "eval_based", "interval")


def given_problem(
    data: Splits,
    *,
    forward_pass: ForwardPass | None = None,
    loss: Any = None,
    evaluation: Any = None,
    device: str | Device = Device.CPU,
    seed: int = 0,
    framework: Literal["keras", "torch"] = "torch",
) -> Problem:
    """Return a problem whose parts are objects.

    Args:
        data: iterables of batches by split; ``train`` is trained on.
        forward_pass: how a batch reaches the model; batches ``(inputs, labels)`` by default.
        loss: a ``LossFunction``, a class of them, or a function ``(model, batch)``; cross entropy
            by default.
        evaluation: an ``EvaluationFunction``, or a function ``(model, loader)``; accuracy by
            default.
        device: where it runs.
        seed: of everything that is random.
        framework: of the network.
    """
    place = as_device(device)
    spec = ModelSpec(model=ModelSection(framework), task="classification")
    problem = Problem(spec, place, seed)
    problem.splits = data
    if forward_pass is not None:
        problem.forward_pass = forward_pass
    context = {"device": place, "forward_pass": problem.forward_pass}
    if loss is not None:
        problem.loss = loss(**accepted(loss, context)) if isinstance(loss, type) else loss
    if evaluation is not None:
        is_class = isinstance(evaluation, type)
        problem.evaluation = evaluation(**accepted(evaluation, context)) if is_class else evaluation
    return problem


def framework_of(model: Any) -> Literal["keras", "torch"]:
    """Return the framework of a network, without importing one."""
    keras: Any = sys.modules.get("keras")
    return "keras" if keras is not None and isinstance(model, keras.Model) else "torch"


def options_from_config(config: Mapping[str, Any], **changes: Any) -> TrainerOptions:
    """Read the dict ``full_trainer`` of a Neutrino configuration; values may be objects.

    ``scheduler`` is ``{factory, eval_based, interval}``, or what ``factory`` would be.

    Raises:
        UsageError: it has an unknown key.
    """
    for key in config:
        if key not in _TRAINER_KEYS:
            raise UsageError(
                f"full_trainer: unknown key {key!r}; expected {', '.join(_TRAINER_KEYS)}",
                hint=did_you_mean(key, _TRAINER_KEYS),
            )
    values = {name: value for name, value in config.items() if value is not None}
    schedule = values.pop("scheduler", None)
    if isinstance(schedule, Mapping) and "factory" in schedule:
        unknown = next((name for name in schedule if name not in _SCHEDULER_KEYS), None)
        if unknown is not None:
            raise UsageError(
                f"full_trainer.scheduler: unknown key {unknown!r}; expected"
                f" {', '.join(_SCHEDULER_KEYS)}"
            )
        default = "eval" if schedule.get("eval_based") else "epoch"
        values["interval"] = schedule.get("interval") or default
        schedule = schedule["factory"]
    average = values.pop("ema", None)
    if average:
        given = average if isinstance(average, Mapping) else {}
        values["ema"] = (given.get("decay_rate", 0.9999), given.get("period", 1))
    return TrainerOptions(scheduler=schedule, **{**values, **changes})


def fit(
    model: Any,
    data: Splits,
    full_trainer: Mapping[str, Any] | TrainerOptions,
    *,
    forward_pass: ForwardPass | None = None,
    loss: Any = None,
    evaluation: Any = None,
    device: str | Device = Device.CPU,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    report: Callable[[TrainProgress], None] | None = None,
) -> Trained:
    """Train a model in place.

    Args:
        model: the network.
        data: iterables of batches by split.
        full_trainer: as in a Neutrino configuration, or options.
        forward_pass: see :func:`given_problem`, as for ``loss`` and ``evaluation``.
        loss: likewise.
        evaluation: likewise.
        device: where to train.
        seed: of everything that is random.
        folder: an existing folder that gets checkpoints; None writes none.
        resume: go on from the newest checkpoint there.
        report: gets a ``TrainProgress`` now and then.
    """
    problem = given_problem(
        data,
        forward_pass=forward_pass,
        loss=loss,
        evaluation=evaluation,
        device=device,
        seed=seed,
        framework=framework_of(model),
    )
    options = full_trainer
    if not isinstance(options, TrainerOptions):
        options = options_from_config(options, device=problem.device, seed=seed)
    place = None if folder is None else Path(folder)
    return train_network(problem, model, options, folder=place, resume=resume, report=report)


def measure(
    model: Any,
    data: Splits,
    *,
    forward_pass: ForwardPass | None = None,
    evaluation: Any = None,
    split: str = "test",
    device: str | Device = Device.CPU,
) -> Evaluation:
    """Evaluate a model on a split."""
    problem = given_problem(
        data,
        forward_pass=forward_pass,
        evaluation=evaluation,
        device=device,
        framework=framework_of(model),
    )
    if problem.spec.model.framework == "keras":
        model = networks.callable_network(model, problem)
    found, _ = evaluate_on(problem, model, problem.split(split, "eval_split"))
    return found
