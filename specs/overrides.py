"""``--set key.path=value``: changes a spec before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from ..errors import SpecError
from .source import KeyPath, SpecSource, format_key, parse_key, read_value


def apply_overrides(source: SpecSource, overrides: Sequence[str]) -> None:
    """Apply ``key.path=value`` changes to a spec, in order; values are YAML.

    Raises:
        SpecError: a change is malformed, or goes through something that is no mapping or list.
    """
    if overrides:
        source.data = copy.deepcopy(source.data)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise SpecError(f"--set {text}: expected KEY=VALUE, such as optimization.delta=0.5")
        try:
            path = parse_key(key.strip())
            _set(source.data, path, read_value(value))
        except SpecError as error:
            raise SpecError(f"--set {text}: {error.reason}") from error
        # What is wrong with the value is wrong with the command line, not with a line of the file.
        for known in [known for known in source.lines if known[: len(path)] == path]:
            del source.lines[known]


def _set(data: Any, path: KeyPath, value: Any) -> None:
    target = data
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        here = format_key(path[: depth + 1])
        if isinstance(part, int):
            if not isinstance(target, list) or part >= len(target):
                raise SpecError(f"{here}: there is no such list entry")
        elif not isinstance(target, dict):
            raise SpecError(
                f"{format_key(path[:depth])}: found a {type(target).__name__};"
                f" expected a mapping with {part!r}"
            )
        if last:
            target[part] = value
        elif isinstance(part, int):
            target = target[part]
        else:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
