"""Reads a spec file: YAML, JSON or TOML by its suffix, to a tree of nodes."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import SpecError
from .hints import did_you_mean
from .nodes import KeyPath, Node, Origin, build, show
from .yaml_text import parse_yaml

MAX_BYTES = 1 << 18
"""Size of a spec file; a larger file is a model or data given by mistake."""

MAX_JSON_BYTES = 1 << 22
"""Size of a JSON file, which may hold the architecture of a Keras model."""

MAX_DOTS = 200
"""Dots in one key or value of a TOML file."""

Parsed = tuple[object, dict[KeyPath, int]]


def read_tree(path: Path) -> Node:
    """Read a spec file.

    Args:
        path: the file; its suffix gives the format, its folder resolves relative paths.

    Raises:
        SpecError: it cannot be read, is not text, not of its format, or holds no mapping.
    """
    parse = _PARSERS.get(path.suffix.lower())
    text = _read_text(path)
    if parse is None:
        raise SpecError(
            f"found the suffix {path.suffix!r}; expected one of {', '.join(_PARSERS)}",
            file=path,
            hint=did_you_mean(path.suffix, _PARSERS),
        )
    try:
        value, lines = parse(text)
    except SpecError as error:
        raise SpecError(
            error.reason, file=path, line=error.line, key=error.key, hint=error.hint
        ) from None
    if value is None:
        raise SpecError("found nothing; expected a mapping of keys to values", file=path)
    if not isinstance(value, dict):
        raise SpecError(f"found {show(value)}; expected a mapping of keys to values", file=path)
    # An error about the whole file, such as a missing key, has no line.
    lines.pop((), None)
    return build(value, Origin(path, path.absolute().parent), lines)


def _read_text(path: Path) -> str:
    limit = MAX_JSON_BYTES if path.suffix.lower() == ".json" else MAX_BYTES
    try:
        if path.is_dir():
            raise SpecError("found a folder; expected a spec file", file=path)
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise SpecError("no such file", file=path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"cannot be read: {reason}", file=path) from None
    if b"\0" in data:
        raise SpecError("found a binary file; expected text", file=path)
    if len(data) > limit:
        raise SpecError(f"larger than {limit} bytes, which no spec is", file=path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError("not UTF-8 text", file=path, line=line) from None


def _parse_json(text: str) -> Parsed:
    if not text.strip():
        return None, {}
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise SpecError(f"not valid JSON: {error.msg}", line=error.lineno) from None
    except RecursionError:
        raise SpecError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise SpecError(f"not valid JSON: {error}") from None
    if len(text) > MAX_BYTES:  # no person wrote it, and finding its lines takes seconds
        json.loads(text, object_pairs_hook=_unique)
        return value, {}
    # Valid JSON is YAML but for tabs (in JSON they are only ever white space) and some escapes.
    try:
        _, lines = parse_yaml(text.replace("\t", " "))
    except SpecError as error:
        if error.reason.startswith("given twice"):
            raise
        json.loads(text, object_pairs_hook=_unique)
        return value, {}
    return value, lines


def _refuse_constant(name: str) -> float:
    raise ValueError(f"found {name}, which is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SpecError(f"the key {twice!a} is given twice")
    return found


_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")
_TOML_PART = r"""(?:[\w-]+|"[^"\\]*"|'[^']*')"""
_TOML_NAME = rf"{_TOML_PART}(?:\s*\.\s*{_TOML_PART})*"
_TOML_TABLE = re.compile(rf"\s*(\[\[?)\s*({_TOML_NAME})\s*\]\]?")
_TOML_KEY = re.compile(rf"\s*({_TOML_NAME})\s*=")


def _parse_toml(text: str) -> Parsed:
    # The time and memory that tomllib takes for a dotted key grow with the square of its length.
    if any(part.count(".") > MAX_DOTS for part in re.split(r"[=,{}\[\]\n]", text)):
        raise SpecError(f"not valid TOML: more than {MAX_DOTS} dots in one key or value")
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise SpecError("not valid TOML: nested too deeply") from None
    except ValueError as error:
        reason = str(error)
        at = _AT_LINE.search(reason)
        line = int(at[1]) if at else None
        raise SpecError(f"not valid TOML: {_AT_LINE.sub('', reason)}", line=line) from None
    return value or None, _toml_lines(text)


def _toml_lines(text: str) -> dict[KeyPath, int]:
    """Find the lines of tables and keys, which tomllib does not tell; unusual layouts lack some."""
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TOML_TABLE.match(line):
            table = ()
            for name in _toml_names(header[2]):
                table = (*table, name)
                # A table below an array of tables belongs to its newest entry.
                if table in counts and table != tuple(_toml_names(header[2])):
                    table = (*table, counts[table] - 1)
            if header[1] == "[[":
                counts[table] = counts.get(table, 0) + 1
                lines.setdefault(table, number)
                table = (*table, counts[table] - 1)
            lines[table] = number
        elif key := _TOML_KEY.match(line):
            path = table
            for name in _toml_names(key[1]):
                path = (*path, name)
                lines.setdefault(path, number)
    return lines


def _toml_names(dotted: str) -> list[str]:
    return [name.strip("\"'") for name in re.findall(_TOML_PART, dotted)]


_PARSERS: Mapping[str, Callable[[str], Parsed]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".json": _parse_json,
    ".toml": _parse_toml,
}
