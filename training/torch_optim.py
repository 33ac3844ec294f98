"""Optimizers and schedulers of PyTorch, by name, as a dict, or from a factory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SpecError
from ..frameworks.base import first_line
from ..specs.declare import Component
from ..specs.hints import did_you_mean
from .components import Components

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


def require_matches(patterns: Sequence[str], names: Sequence[str], where: str) -> None:
    """Check that every pattern is part of a name.

    Raises:
        SpecError: one is not.
    """
    for pattern in patterns:
        if not any(pattern in name for name in names):
            raise SpecError(
                f"{where}: found {pattern!r}, which is part of no name; the network has"
                f" {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}",
                hint=did_you_mean(pattern, names),
            )


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
    import torch

    key = "full_trainer.optimizer"
    component = _component(DEFAULT_OPTIMIZER if wanted is None else wanted)
    if component is None or component.is_entrypoint:
        if weight_decay is not None or weight_decay_skip:
            raise SpecError(
                f"{key}: an optimizer of your own decides about weight decay itself; expected"
                " training.weight_decay to be left out"
            )
        return _made(wanted, component, model, components, key)
    name, kwargs = _OPTIMIZERS.get(component.name.lower(), (component.name, {}))
    known = _classes(torch.optim, torch.optim.Optimizer)
    found = _named(name, known, [*_OPTIMIZERS, *known], key, "an optimizer of torch.optim")
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
    return _called(found, (groups,), kwargs, key)


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
    component = _component(wanted)
    if component is None or component.is_entrypoint:
        return _made(wanted, component, optimizer, components, key)
    name, kwargs = component.name, dict(component.kwargs)
    if name not in _SCHEDULERS:
        known = _classes(lr_scheduler, lr_scheduler.LRScheduler)
        found = _named(
            name, known, [*_SCHEDULERS, *known], key, "a class of torch.optim.lr_scheduler"
        )
        return _called(found, (optimizer,), kwargs, key)
    if name == "plateau":
        kwargs.setdefault("mode", "max" if higher_is_better else "min")
        return _called(lr_scheduler.ReduceLROnPlateau, (optimizer,), kwargs, key)
    if name == "piecewise":
        return _called(_piecewise, (optimizer,), kwargs, key)
    total = max(1, epochs)
    if interval == "iteration":
        if steps_per_epoch is None:
            raise SpecError(
                f"{key}: {name!r} with the interval 'iteration' needs to know how many batches an"
                " epoch has; the training data has no len()",
                hint="give the loader a __len__, or use the interval 'epoch'",
            )
        total = max(1, epochs * steps_per_epoch)
    if name == "cosine":
        kwargs["eta_min"] = kwargs.pop("min_lr", 0.0)
        return _called(lr_scheduler.CosineAnnealingLR, (optimizer, total), kwargs, key)
    kwargs.setdefault("max_lr", [group["lr"] for group in optimizer.param_groups])
    return _called(lr_scheduler.OneCycleLR, (optimizer,), {"total_steps": total, **kwargs}, key)


def _piecewise(optimizer: Any, boundaries: Sequence[int], decay: Any = 0.1) -> Any:
    from torch.optim.lr_scheduler import LambdaLR

    factors = list(decay) if isinstance(decay, list | tuple) else [decay] * len(boundaries)
    if len(factors) != len(boundaries) or list(boundaries) != sorted(boundaries):
        raise TypeError(f"boundaries {list(boundaries)} rise, with one decay {factors} for each")

    def factor(step: int) -> float:
        product = 1.0
        for boundary, item in zip(boundaries, factors, strict=True):
            product *= item if step >= boundary else 1.0
        return product

    return LambdaLR(optimizer, factor)


def _component(wanted: Any) -> Component | None:
    """Read a dict or a name; None for an object of the user's."""
    if isinstance(wanted, Component):
        return wanted
    if isinstance(wanted, str):
        return Component(wanted)
    if isinstance(wanted, Mapping):
        kwargs = dict(wanted)
        if not isinstance(kwargs.get("name"), str):
            raise SpecError(f"found {dict(wanted)!r}; expected a dict {{name, **kwargs}}")
        return Component(kwargs.pop("name"), kwargs)
    return None


def _made(
    wanted: Any, component: Component | None, target: Any, components: Components, key: str
) -> Any:
    """Let a factory make it: an object or class with ``make``, or a function of the target."""
    factory = wanted
    kwargs: dict[str, Any] = {}
    if component is not None:
        factory = components.find("optimizer", component.name, key)
        kwargs = component.kwargs
    name = component.name if component is not None else type(wanted).__name__
    if inspect.isclass(factory) and hasattr(factory, "make"):
        factory, kwargs = components.call(factory, kwargs, key, name), {}
    make = getattr(factory, "make", factory)
    if not callable(make):
        raise SpecError(
            f"{key}: {name!r} is a {type(factory).__name__}; expected a factory with make, or a"
            " function"
        )
    return _called(make, (target,), kwargs, key)


def _classes(module: Any, base: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
        if not name.startswith("_")
    }


def _named(name: str, known: Mapping[str, Any], names: list[str], key: str, what: str) -> Any:
    lowered = {item.lower(): value for item, value in known.items()}
    if name.lower() not in lowered:
        raise SpecError(
            f"{key}: found {name!r}; expected module:attribute, or {what}",
            hint=did_you_mean(name, names)
            or did_you_mean(name.lower(), names)
            or f"such as {', '.join(sorted(known)[:6])}",
        )
    return lowered[name.lower()]


def _called(function: Any, positional: tuple[Any, ...], kwargs: dict[str, Any], key: str) -> Any:
    name = getattr(function, "__name__", type(function).__name__).lstrip("_")
    try:
        return function(*positional, **kwargs)
    except (TypeError, ValueError) as error:
        known = [item for item in inspect.signature(function).parameters if item != "params"]
        unknown = next((item for item in kwargs if item not in known), None)
        raise SpecError(
            f"{key}: {name} cannot be made: {first_line(error)}",
            hint=None if unknown is None else did_you_mean(unknown, known),
        ) from error
