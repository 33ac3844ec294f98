"""Reads a spec file (YAML, JSON, TOML) into plain values, and remembers the line of every key."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SpecError

KeyPath = tuple[str | int, ...]
"""Where a value stands: mapping keys and list indices, from the root."""

_MAX_LINES = 20_000


@dataclass
class SpecSource:
    """A spec as it was read.

    Attributes:
        data: the mapping at its root.
        root: the folder against which relative paths resolve.
        file: the spec file, or None when it came from Python.
        lines: 1-based line of each key, by path.
    """

    data: dict[str, Any]
    root: Path
    file: Path | None = None
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def error(self, path: KeyPath, message: str, hint: str | None = None) -> SpecError:
        """Build an error about a key; its line is that of the nearest key above it that has one."""
        line = None
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                line = self.lines[path[:end]]
                break
        return SpecError(message, file=self.file, line=line, key=format_key(path), hint=hint)


def format_key(path: KeyPath) -> str | None:
    """Return ``inputs[0].shape`` for a path; None for the root."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or None


def parse_key(text: str) -> KeyPath:
    """Return the path of ``inputs[0].shape``.

    Raises:
        SpecError: it is malformed.
    """
    path: list[str | int] = []
    for part in text.split("."):
        match = re.fullmatch(r"([^\[\]]+)((?:\[\d+\])*)", part)
        if match is None:
            raise SpecError(f"found the key {text!r}; expected one like inputs[0].shape")
        path.append(match[1])
        path.extend(int(index) for index in re.findall(r"\d+", match[2]))
    return tuple(path)


def read_source(path: Path) -> SpecSource:
    """Read a spec file; its suffix says the format (``.json``, ``.toml``, else YAML).

    Raises:
        SpecError: it cannot be read, or is no mapping.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", file=path) from error
    except UnicodeDecodeError as error:
        raise SpecError("not a text file; expected a spec in UTF-8", file=path) from error
    if path.suffix.lower() == ".toml":
        data, lines = _read_toml(text, path)
    else:
        if path.suffix.lower() == ".json":
            _check_json(text, path)
            # YAML allows no tab between tokens, and JSON no line break inside of one.
            text = "\n".join(_expand_tabs(line) for line in text.split("\n"))
        data, lines = _read_yaml(text, path)
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise SpecError(f"found {found}; expected a mapping with name and model", file=path)
    return SpecSource(data, path.absolute().parent, path, lines)


def _read_toml(text: str, path: Path) -> tuple[Any, dict[KeyPath, int]]:
    import tomllib

    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(f"not valid TOML: {error}", file=path) from error
    return data, _toml_lines(text, data)


def _toml_lines(text: str, data: Mapping[str, Any]) -> dict[KeyPath, int]:
    """The lines of tables and of keys that stand on a line of their own; the parser tells none."""
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*(\[\[?)\s*([\w.\-\" ]+?)\s*\]", line)
        assignment = re.match(r"\s*([\w.\-\"]+)\s*=", line)
        if header:
            table = tuple(part.strip(' "') for part in header[2].split("."))
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            lines.setdefault(table, number)
        elif assignment:
            keys = tuple(part.strip(' "') for part in assignment[1].split("."))
            lines.setdefault((*table, *keys), number)
    return lines


def _check_json(text: str, path: Path) -> None:
    import json

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise SpecError(f"not valid JSON: {error.msg}", file=path, line=error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"not valid JSON: {error}", file=path) from error


def _expand_tabs(line: str) -> str:
    body = line.lstrip("\t ")
    return " " * (len(line) - len(body)) + body.replace("\t", " ")


def _read_yaml(text: str, path: Path) -> tuple[Any, dict[KeyPath, int]]:
    import yaml

    loader = _loader()(text)
    lines: dict[KeyPath, int] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _check_node(node, path)
        _collect_lines(node, (), lines)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        problem = error.problem or error.context or str(error)
        raise SpecError(f"not valid YAML: {problem}", file=path, line=line) from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(f"not valid YAML: {reason}", file=path) from error
    finally:
        loader.dispose()


def _loader() -> Any:
    """A safe loader with numbers such as 1e-4, and only ``true`` and ``false`` as booleans.

    YAML 1.1, which PyYAML reads, takes 1e-4 for a string, and an input named ``no`` or ``on`` for a
    boolean; YAML 1.2 does not. Dates stay strings.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    dropped = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in dropped]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"
    )
    number = r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+"
    number += r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(number), "-+.0123456789")
    return Loader


def _check_node(node: Any, path: Path) -> None:
    """Refuse duplicate and non-string keys, and aliases that multiply into very many values."""
    import yaml

    seen: set[int] = set()
    pending, visits = [node], 0
    while pending:
        current = pending.pop()
        visits += 1
        if visits > _MAX_LINES * 10:
            raise SpecError("too many values; expected a spec of a few pages", file=path)
        if isinstance(current, yaml.SequenceNode):
            pending.extend(current.value)
        if not isinstance(current, yaml.MappingNode):
            continue
        if id(current) not in seen:
            seen.add(id(current))
            _check_keys(current, path)
        pending.extend(value for _, value in current.value)


def _check_keys(node: Any, path: Path) -> None:
    keys: set[Hashable] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not hasattr(key, "value") or not isinstance(key.value, str):
            raise SpecError("found a key that is no plain text", file=path, line=line)
        if key.value in keys and key.value != "<<":
            raise SpecError(
                f"the key {key.value!r} is there twice", file=path, line=line, key=key.value
            )
        keys.add(key.value)


def _collect_lines(node: Any, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    import yaml

    if len(lines) > _MAX_LINES:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            lines.setdefault(here, key.start_mark.line + 1)
            _collect_lines(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines.setdefault((*path, index), value.start_mark.line + 1)
            _collect_lines(value, (*path, index), lines)


def read_value(text: str) -> Any:
    """Parse one YAML value.

    Raises:
        SpecError: it is malformed.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(f"not a YAML value: {reason}") from error
