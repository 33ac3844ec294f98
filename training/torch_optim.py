"""Optimizers and schedulers of PyTorch, by name, as a dict, or from a factory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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

DEFAULT_OPTIMIZER = Component("Adam", {"lr": 1e-3})

_OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "momentum": ("SGD", {"momentum": 0.9}),
    "adam": ("Adam", {}),
}
_SCHEDULERS = ("cosine", "one_cycle", "piecewise", "plateau")


def trained_parameters(model: Any, trainable: Sequence[str], where: str) -> dict[str, Any]:
    """Freeze the parameters that are not trained, and return the others by name.

    Args:
        model: the network.
        trainable: parts of names; every parameter with one of them is trained, all when empty.
        where: the key of the spec, for messages.

    Raises:
        SpecError: a pattern fits no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    require_matches(trainable, names, where)
    for name, parameter in model.named_parameters():
        if trainable and not any(part in name for part in trainable):
            parameter.requires_grad_(False)
    return {name: item for name, item in model.named_parameters() if item.requires_grad}


def optimizer_class(name: str, key: str) -> tuple[Any, dict[str, Any]]:
    """Return the optimizer of a name, in any case, and the arguments that the name stands for.

    Args:
        name: that of a class of ``torch.optim``, or ``momentum``.
        key: the key that has it, for messages.

    Raises:
        SpecError: there is none.
    """
    import torch

    name, kwargs = _OPTIMIZERS.get(name.lower(), (name, {}))
    known = classes_of(torch.optim, torch.optim.Optimizer)
    found = class_named(name, known, [*_OPTIMIZERS, *known], key, "an optimizer of torch.optim")
    return found, kwargs


def make_optimizer(
    wanted: Any,
    model: Any,
    parameters: Mapping[str, Any],
    *,
    components: Components,
    weight_decay: float | None = None,
    weight_decay_skip: Sequence[str] = (),
) -> Any:
    """Return the optimizer.

    Args:
        wanted: a :class:`Component`, a dict ``{name, **kwargs}``, a factory, a function of the
            model, or None for Adam.
        model: the network, for factories.
        parameters: what is trained, by name.
        components: the parts of the spec, where a name is ``module:attribute``.
        weight_decay: L2 penalty; None leaves that of the optimizer.
        weight_decay_skip: parts of names of parameters that get none.

    Raises:
        SpecError: there is no such optimizer, or it does not take its arguments.
    """
    key = "full_trainer.optimizer"
    component = component_of(DEFAULT_OPTIMIZER if wanted is None else wanted)
    if component is None or component.is_entrypoint:
        if weight_decay is not None or weight_decay_skip:
            raise own_weight_decay(key)
        return made_by_factory(wanted, component, model, components, key)
    found, kwargs = optimizer_class(component.name, key)
    kwargs = {**kwargs, **component.kwargs}
    if weight_decay is not None:
        kwargs["weight_decay"] = weight_decay
    groups: Any = list(parameters.values())
    if weight_decay_skip:
        require_matches(weight_decay_skip, list(parameters), "training.weight_decay_skip")
        skipped = {n for n in parameters if any(part in n for part in weight_decay_skip)}
        groups = [
            {"params": [item for n, item in parameters.items() if n not in skipped]},
            {"params": [parameters[n] for n in parameters if n in skipped], "weight_decay": 0.0},
        ]
    return called(found, (groups,), kwargs, key)


def make_scheduler(
    wanted: Any,
    optimizer: Any,
    *,
    components: Components,
    epochs: int,
    steps_per_epoch: int | None,
    interval: str,
    higher_is_better: bool = True,
) -> Any:
    """Return the scheduler, or None.

    Built in, beside the classes of ``torch.optim.lr_scheduler``:

    - ``piecewise``: ``boundaries`` in steps of the scheduler, ``decay`` (0.1) a factor, or one for
      each boundary;
    - ``cosine``: down to ``min_lr`` (0) at the end of training;
    - ``one_cycle``: up to ``max_lr`` (the optimizer's) and down again;
    - ``plateau``: lower by ``factor`` after ``patience`` evaluations without improvement.

    Args:
        wanted: as for :func:`make_optimizer`; None is no scheduler.
        optimizer: whose learning rate is set.
        components: the parts of the spec.
        epochs: how long training lasts.
        steps_per_epoch: iterations of an epoch; None when the data does not say.
        interval: when it steps: ``eval``, ``epoch`` or ``iteration``.
        higher_is_better: direction of the metric, for ``plateau``.

    Raises:
        SpecError: there is no such scheduler, or it does not take its arguments.
    """
    from torch.optim import lr_scheduler

    key = "full_trainer.scheduler"
    if wanted is None:
        return None
    component = component_of(wanted)
    if component is None or component.is_entrypoint:
        return made_by_factory(wanted, component, optimizer, components, key)
    name, kwargs = component.name, dict(component.kwargs)
    if name not in _SCHEDULERS:
        known = classes_of(lr_scheduler, lr_scheduler.LRScheduler)
        found = class_named(
            name, known, [*_SCHEDULERS, *known], key, "a class of torch.optim.lr_scheduler"
        )
        return called(found, (optimizer,), kwargs, key)
    if name == "plateau":
        kwargs.setdefault("mode", "max" if higher_is_better else "min")
        return called(lr_scheduler.ReduceLROnPlateau, (optimizer,), kwargs, key)
    if name == "piecewise":
        return called(_piecewise, (optimizer,), kwargs, key)
    total = schedule_length(name, epochs, steps_per_epoch, interval)
    if name == "cosine":
        kwargs["eta_min"] = kwargs.pop("min_lr", 0.0)
        return called(lr_scheduler.CosineAnnealingLR, (optimizer, total), kwargs, key)
    kwargs.setdefault("max_lr", [group["lr"] for group in optimizer.param_groups])
    return called(lr_scheduler.OneCycleLR, (optimizer,), {"total_steps": total, **kwargs}, key)


def _piecewise(optimizer: Any, boundaries: Sequence[int], decay: Any = 0.1) -> Any:
    from torch.optim.lr_scheduler import LambdaLR

    factors = decay_factors(boundaries, decay)

    def factor(step: int) -> float:
        product = 1.0
        for boundary, item in zip(boundaries, factors, strict=True):
            product *= item if step >= boundary else 1.0
        return product

    return LambdaLR(optimizer, factor)
