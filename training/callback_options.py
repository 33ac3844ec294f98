"""Callbacks that are options, too: ``training.callbacks`` and ``full_trainer`` mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SpecError
from ..specs.declare import Component
from ..specs.hints import did_you_mean

_ARGUMENTS: Mapping[str, Mapping[str, tuple[type, float, float]]] = {
    "early_stopping": {"patience": (int, 1, float("inf"))},
    "ema": {"decay_rate": (float, 0, 1), "period": (int, 1, float("inf"))},
}
"""By callback and argument its type, and its lowest and highest value."""

_DEFAULTS = {"patience": 5, "decay_rate": 0.9999, "period": 1}
_OPTIONS = {"early_stopping": "early_stopping_patience", "ema": "ema"}

AS_OPTIONS = tuple(_OPTIONS)
"""Names of callbacks that only set an option of :class:`TrainerOptions`."""


def options_of_callbacks(
    callbacks: Sequence[Component], given: Mapping[str, Any], label: str
) -> dict[str, Any]:
    """Return the options that callbacks set: ``early_stopping_patience`` and ``ema``.

    Args:
        callbacks: ``training.callbacks``.
        given: the same options, as ``full_trainer`` sets them; None where it does not.
        label: what messages call the spec.

    Raises:
        SpecError: an argument is wrong, or both say something else.
    """
    found: dict[str, Any] = {}
    for wanted in callbacks:
        if wanted.name not in _OPTIONS:
            continue
        values = _arguments(wanted, label)
        option = _OPTIONS[wanted.name]
        value = values[0] if len(values) == 1 else values
        other = found.get(option, given.get(option))
        if other is not None and other != value:
            raise SpecError(
                f"{label}: training.callbacks: {wanted.name!r}: found {value} beside {other}, which"
                f" is set already; expected it once",
                hint=f"full_trainer.{option} and the callback {wanted.name!r} are the same",
            )
        found[option] = value
    return found


def _arguments(wanted: Component, label: str) -> tuple[Any, ...]:
    known = _ARGUMENTS[wanted.name]
    where = f"{label}: training.callbacks: {wanted.name!r}"
    for name in wanted.kwargs:
        if name not in known:
            raise SpecError(
                f"{where} cannot be made: found the argument {name!r}; it takes {', '.join(known)}",
                hint=did_you_mean(name, known),
            )
    values = []
    for name, (kind, low, high) in known.items():
        value = wanted.kwargs.get(name, _DEFAULTS[name])
        is_number = isinstance(value, int if kind is int else (int, float))
        if not is_number or isinstance(value, bool) or not low <= value <= high:
            limits = f"{low:g} or more" if high == float("inf") else f"{low:g}..{high:g}"
            kinds = "an integer" if kind is int else "a number"
            raise SpecError(f"{where}: {name}: found {value!r}; expected {kinds}, {limits}")
        values.append(value)
    return tuple(values)
