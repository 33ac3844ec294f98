"""What a spec names of a framework's own classes: optimizers, schedules, losses, by any case."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SpecError
from ..frameworks.base import first_line
from ..specs.declare import Component
from ..specs.hints import did_you_mean
from .components import Components


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


def component_of(wanted: Any) -> Component | None:
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


def made_by_factory(
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
    return called(make, (target,), kwargs, key)


def own_weight_decay(key: str) -> SpecError:
    """Return the error of a weight decay beside an optimizer that a factory makes."""
    return SpecError(
        f"{key}: an optimizer of your own decides about weight decay itself; expected"
        " training.weight_decay to be left out"
    )


def classes_of(module: Any, base: type) -> dict[str, Any]:
    """Return the public classes of a module that derive from another class, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
        if not name.startswith("_")
    }


def class_named(name: str, known: Mapping[str, Any], names: list[str], key: str, what: str) -> Any:
    """Return a class by its name in any case.

    Args:
        name: what the spec says.
        known: classes by name.
        names: all names that may stand there, for the hint.
        key: the key of the spec, for messages.
        what: what is expected beside ``module:attribute``.

    Raises:
        SpecError: there is none.
    """
    lowered = {item.lower(): value for item, value in known.items()}
    if name.lower() not in lowered:
        raise SpecError(
            f"{key}: found {name!r}; expected module:attribute, or {what}",
            hint=did_you_mean(name, names)
            or did_you_mean(name.lower(), names)
            or f"such as {', '.join(sorted(known)[:6])}",
        )
    return lowered[name.lower()]


def called(function: Any, positional: tuple[Any, ...], kwargs: dict[str, Any], key: str) -> Any:
    """Call a class or function.

    Raises:
        SpecError: it does not take the arguments.
    """
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
