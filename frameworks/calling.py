"""How named arrays reach a callable model, and how what it returns gets its names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ModelError

_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def takes_keywords(function: Callable[..., Any], names: Sequence[str]) -> bool:
    """Whether every name is a parameter of ``function``, or it takes any keyword."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return True
    known = {parameter.name for parameter in parameters if parameter.kind in _KINDS}
    return set(names) <= known


def name_outputs(returned: Any, names: Sequence[str], label: str) -> dict[str, Any]:
    """Give names to what a model returned.

    Args:
        returned: a dict by name (a dict in it is flattened: ``boxes.scores``), a named tuple, a
            list or tuple (of values in the order of the
            spec, or of dicts that together hold all outputs), or the bare value of the one output.
        names: the outputs of the spec, in order; empty when there is no spec: then values are
            called ``output``, or ``output_0``, ``output_1``, ...
        label: the model, for messages.

    Raises:
        ModelError: nothing was returned, an output comes twice, or the number of values differs.
    """
    if returned is None:
        raise ModelError(f"{label}: the model returned None; expected {_expected(names)}")
    if isinstance(returned, Mapping):
        return _flatten(returned)
    if isinstance(returned, tuple) and hasattr(returned, "_asdict"):
        fields = returned._asdict()
        if not names or set(names) <= set(fields):
            return dict(fields)
    if isinstance(returned, list | tuple):
        if returned and all(isinstance(item, Mapping) for item in returned):
            return _merge(returned, label)
        is_strings = len(names) == 1 and returned and isinstance(returned[0], str)
        if not is_strings:
            if not names:
                return {f"output_{index}": value for index, value in enumerate(returned)}
            if len(returned) != len(names):
                raise ModelError(
                    f"{label}: the model returned {len(returned)} values;"
                    f" expected {_expected(names)}"
                )
            return dict(zip(names, returned, strict=True))
    if not names:
        return {"output": returned}
    if len(names) > 1:
        raise ModelError(
            f"{label}: the model returned one bare {type(returned).__name__};"
            f" expected {_expected(names)}"
        )
    return {names[0]: returned}


def _flatten(returned: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by name; those of a dict in a dict by both names: ``boxes.scores``."""
    flat: dict[str, Any] = {}
    for name, value in returned.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _merge(parts: Sequence[Mapping[str, Any]], label: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name in merged:
                raise ModelError(f"{label}: the model returned the output {name!r} twice")
            merged[str(name)] = value
    return merged


def _expected(names: Sequence[str]) -> str:
    if not names:
        return "its outputs"
    return f"{len(names)} output{'s' if len(names) > 1 else ''}: {', '.join(names)}"
