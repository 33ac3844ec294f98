"""Accepts the spellings of Neuropod and Neutrino, so that an existing config pastes in."""

from __future__ import annotations

from typing import Any

from .source import KeyPath, SpecSource

RENAMED = {
    "input_spec": "inputs",
    "output_spec": "outputs",
    "model_name": "name",
    "task_type": "task",
    "licence": "license",
}
"""Top-level spellings of Neuropod and Neutrino, and what they are called here."""

MOVED = {
    "delta": "optimization",
    "level": "optimization",
    "deepsearch": "optimization",
    "device": "optimization",
    "use_horovod": "optimization",
    "eval_key": "evaluation",
    "eval_split": "evaluation",
}
"""Top-level keys of Neutrino's, and the section in which they stand here."""


def normalise(source: SpecSource) -> SpecSource:
    """Return the spec with renamed and moved keys; lines follow the keys.

    Raises:
        SpecError: a key stands under two spellings, or in two places.
    """
    data = dict(source.data)
    lines = dict(source.lines)
    result = SpecSource(data, source.root, source.file, lines)
    for old, new in RENAMED.items():
        if old in data:
            if new in data:
                raise source.error((old,), f"there is {new!r} as well, which means the same")
            data[new] = data.pop(old)
            _move_lines(lines, (old,), (new,))
    for key, section in MOVED.items():
        if key not in data:
            continue
        value = data.pop(key)
        data[section] = _insert(source, data.get(section), section, key, value)
        _move_lines(lines, (key,), (section, key))
    return result


def _insert(source: SpecSource, section: Any, name: str, key: str, value: Any) -> Any:
    if section is None:
        return {key: value}
    if isinstance(section, str):
        first = "mode" if name == "optimization" else "function"
        return {first: section, key: value}
    if isinstance(section, dict):
        if key in section:
            raise source.error((key,), f"there is {name}.{key} as well, which means the same")
        return {**section, key: value}
    if isinstance(section, list | tuple):
        return [_insert(source, entry, name, key, value) for entry in section]
    return section


def _move_lines(lines: dict[KeyPath, int], old: KeyPath, new: KeyPath) -> None:
    for path in [path for path in lines if path[: len(old)] == old]:
        lines[new + path[len(old) :]] = lines[path]
