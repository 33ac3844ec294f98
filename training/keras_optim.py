"""Optimizers and learning-rate schedules of Keras, by name, as a dict, or from a factory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SpecError
from ..frameworks.keras import import_keras
from ..specs.declare import Component
from .components import Components
from .named import (
    called,
    class_named,
    classes_of,
    component_of,
    made_by_factory,
    own_weight_decay,
    require_matches,
)
from .schedules import decay_factors, schedule_length

DEFAULT_OPTIMIZER = Component("Adam", {"learning_rate": 1e-3})

_OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {"momentum": ("SGD", {"momentum": 0.9})}
_SCHEDULES = ("cosine", "piecewise", "plateau")


def trained_variables(
    network: Any, variables: Mapping[str, Any], trainable: Sequence[str], where: str
) -> dict[str, Any]:
    """Freeze the layers that are not trained, and return the variables that are, by name.

    A BatchNorm layer none of whose variables is trained keeps its statistics, too.

    Args:
        network: the model.
        variables: its weights by name.
        trainable: parts of names; every variable with one of them is trained, all when empty.
        where: the key of the spec, for messages.

    Raises:
        SpecError: a pattern fits no variable.
    """
    own = {id(variable) for variable in network.trainable_variables}
    free = {name: variable for name, variable in variables.items() if id(variable) in own}
    require_matches(trainable, list(free), where)
    if not trainable:
        return free
    chosen = {n: variable for n, variable in free.items() if any(part in n for part in trainable)}
    kept = {id(variable) for variable in chosen.values()}
    for layer in network._flatten_layers(include_self=False):
        inside = layer.trainable_variables
        if inside and not any(id(variable) in kept for variable in inside):
            layer.trainable = False
    return chosen


def optimizer_class(name: str, key: str) -> tuple[Any, dict[str, Any]]:
    """Return the optimizer of a name, in any case, and the arguments that the name stands for.

    Args:
        name: that of a class of ``keras.optimizers``, or ``momentum``.
        key: the key that has it, for messages.

    Raises:
        SpecError: there is none.
    """
    optimizers = import_keras().optimizers
    name, kwargs = _OPTIMIZERS.get(name.lower(), (name, {}))
    known = classes_of(optimizers, optimizers.Optimizer)
    found = class_named(name, known, [*_OPTIMIZERS, *known], key, "an optimizer of Keras")
    return found, kwargs


def make_optimizer(
    wanted: Any,
    network: Any,
    variables: Mapping[str, Any],
    *,
    components: Components,
    weight_decay: float | None = None,
    weight_decay_skip: Sequence[str] = (),
) -> tuple[Any, list[float]]:
    """Return the optimizer, and the L2 penalty of each variable that the step has to add.

    AdamW, and others that bring a weight decay, take ``weight_decay`` as their own (decoupled from
    the gradient: Loshchilov and Hutter, 2019, arXiv:1711.05101). The gradients of the others get
    ``weight_decay * variable``, as in PyTorch.

    Args:
        wanted: a :class:`Component`, a dict ``{name, **kwargs}``, a factory, a function of the
            network, or None for Adam. ``lr`` means ``learning_rate``.
        network: the model, for factories.
        variables: what is trained, by name.
        components: the parts of the spec, where a name is ``module:attribute``.
        weight_decay: None leaves that of the optimizer.
        weight_decay_skip: parts of names of variables that get none.

    Raises:
        SpecError: there is no such optimizer, or it does not take its arguments.
    """
    keras = import_keras()
    key = "full_trainer.optimizer"
    none = [0.0] * len(variables)
    component = component_of(DEFAULT_OPTIMIZER if wanted is None else wanted)
    if component is None or component.is_entrypoint:
        if weight_decay is not None or weight_decay_skip:
            raise own_weight_decay(key)
        made = made_by_factory(wanted, component, network, components, key)
        if not isinstance(made, keras.optimizers.Optimizer):
            raise SpecError(f"{key}: found a {type(made).__name__}; expected a Keras optimizer")
        return made, none
    found, kwargs = optimizer_class(component.name, key)
    kwargs = {**kwargs, **component.kwargs}
    if "lr" in kwargs and "learning_rate" not in kwargs:
        kwargs["learning_rate"] = kwargs.pop("lr")
    rate = kwargs.get("learning_rate")
    if isinstance(rate, int | float) and not isinstance(rate, bool):
        if not rate >= 0:  # Keras takes it, and PyTorch does not
            raise SpecError(f"{key}.lr: found {rate}; expected a number from 0")
        kwargs["learning_rate"] = float(rate)  # Keras refuses an integer
    made = called(found, (), kwargs, key)
    if weight_decay_skip:
        require_matches(weight_decay_skip, list(variables), "training.weight_decay_skip")
    skipped = {n: any(part in n for part in weight_decay_skip) for n in variables}
    is_decoupled = made.weight_decay is not None
    if is_decoupled and weight_decay is not None:
        made.weight_decay = weight_decay
    if is_decoupled and weight_decay_skip:
        made.exclude_from_weight_decay([item for n, item in variables.items() if skipped[n]])
    if is_decoupled or weight_decay is None:
        return made, none
    return made, [0.0 if skipped[n] else weight_decay for n in variables]


class Plateau:
    """Lowers the learning rate when the metric that counts stops improving.

    Args:
        rate: the first learning rate.
        higher_is_better: direction of the metric.
        factor: what the rate is multiplied by.
        patience: evaluations without improvement before that.
        min_lr: it goes no lower.
        min_delta: smaller improvements do not count.
    """

    def __init__(
        self,
        rate: float,
        higher_is_better: bool,
        factor: float = 0.1,
        patience: int = 10,
        min_lr: float = 0.0,
        min_delta: float = 1e-4,
    ) -> None:
        self.rate, self.sign = rate, 1.0 if higher_is_better else -1.0
        self.factor, self.patience = factor, patience
        self.min_lr, self.min_delta = min_lr, min_delta
        self.scale, self.best, self.waited = 1.0, -math.inf, 0

    def __call__(self, step: int) -> float:
        return max(self.min_lr, self.rate * self.scale)

    def listen(self, value: float) -> None:
        """Take the value of the metric after an evaluation."""
        if self.sign * value > self.best + self.min_delta:
            self.best, self.waited = self.sign * value, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.scale, self.waited = self.scale * self.factor, 0

    def state(self) -> dict[str, float]:
        """Return what a checkpoint has to hold."""
        return {"scale": self.scale, "best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, float]) -> None:
        """Put back what :meth:`state` returned."""
        self.scale, self.best = state["scale"], state["best"]
        self.waited = int(state["waited"])


def make_schedule(
    wanted: Any,
    rate: float,
    *,
    components: Components,
    epochs: int,
    steps_per_epoch: int | None,
    interval: str,
    higher_is_better: bool = True,
) -> Any:
    """Return the schedule, a function of its step to a learning rate; None keeps the rate.

    Built in, beside the classes of ``keras.optimizers.schedules``:

    - ``piecewise``: ``boundaries`` in steps of the schedule, ``decay`` (0.1) a factor, or one for
      each boundary;
    - ``cosine``: down to ``min_lr`` (0) at the end of training;
    - ``plateau``: lower by ``factor`` after ``patience`` evaluations without improvement.

    Args:
        wanted: as for :func:`make_optimizer`; of the user's, a function of the learning rate that
            returns a schedule.
        rate: the learning rate that it starts from.
        components: the parts of the spec.
        epochs: how long training lasts.
        steps_per_epoch: iterations of an epoch; None when the data does not say.
        interval: when it steps: ``eval``, ``epoch`` or ``iteration``.
        higher_is_better: direction of the metric, for ``plateau``.

    Raises:
        SpecError: there is no such schedule, or it does not take its arguments.
    """
    if wanted is None:
        return None
    schedules = import_keras().optimizers.schedules
    key = "full_trainer.scheduler"
    component = component_of(wanted)
    if component is None or component.is_entrypoint:
        return made_by_factory(wanted, component, rate, components, key)
    name, kwargs = component.name, dict(component.kwargs)
    if name == "plateau":
        return called(Plateau, (rate, higher_is_better), kwargs, key)
    if name == "piecewise":
        return called(_piecewise, (rate,), kwargs, key)
    if name != "cosine":
        known = classes_of(schedules, schedules.LearningRateSchedule)
        what = "a class of keras.optimizers.schedules"
        found = class_named(name, known, [*_SCHEDULES, *known], key, what)
        return called(found, (), {"initial_learning_rate": rate, **kwargs}, key)
    total = schedule_length(name, epochs, steps_per_epoch, interval)
    lowest = kwargs.pop("min_lr", 0.0)
    kwargs["alpha"] = lowest / rate if rate else 0.0
    return called(schedules.CosineDecay, (rate, total), kwargs, key)


def _piecewise(rate: float, boundaries: Sequence[int], decay: Any = 0.1) -> Any:
    values = [rate]
    for factor in decay_factors(boundaries, decay):
        values.append(values[-1] * factor)
    # Keras takes the new value after its boundary, and not at it.
    before = [boundary - 1 for boundary in boundaries]
    schedules = import_keras().optimizers.schedules
    return schedules.PiecewiseConstantDecay(before, values)
