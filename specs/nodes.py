"""The tree of a spec between file and dataclasses: every value knows where it was written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from pathlib import Path, PurePath
from typing import Any

from ..errors import SpecError
from .tensors import TensorSpec

KeyPath = tuple[str | int, ...]
Lines = Mapping[KeyPath, int]

MAX_NODES = 100_000
"""Values in one spec; a few YAML aliases can stand for more than fits in memory."""

MAX_DEPTH = 64
"""Levels of one spec; a Python mapping or a YAML alias can contain itself."""

_PLAIN_KEY = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Origin:
    """Where a value was written.

    Attributes:
        file: the file, ``--set``, or None for a mapping given in Python.
        root: the folder that relative paths in it are resolved against.
    """

    file: str | Path | None
    root: Path


@dataclass
class Node:
    """A value of the spec: a scalar, a list of nodes or a dict of nodes.

    Attributes:
        value: the value.
        path: the key path as the user wrote it, whatever the value is called after normalisation.
        origin: the file that it was written in.
        line: 1-based line, when known.
    """

    value: Any
    path: KeyPath
    origin: Origin
    line: int | None = None

    def error(self, message: str, *, hint: str | None = None, below: KeyPath = ()) -> SpecError:
        """Return the error that names this node, or the key ``below`` it."""
        return SpecError(
            message,
            file=self.origin.file,
            line=self.line,
            key=format_key((*self.path, *below)) or None,
            hint=hint,
        )

    def wrong(self, expected: str, *, hint: str | None = None) -> SpecError:
        """Return the error ``found ...; expected ...``."""
        return self.error(f"found {show(self.value)}; expected {expected}", hint=hint)

    def with_value(self, value: Any) -> Node:
        """Return a node for another value that was written in the same place."""
        return replace(self, value=value)

    def wrapped(self, name: str) -> Node:
        """Return the mapping ``{name: this}``, for a value that stands for its section."""
        return self.with_value({name: self})

    def at(self, name: str) -> Node:
        """Return the child of that name, or this node where there is none, to point at."""
        child = self.value.get(name) if isinstance(self.value, dict) else None
        return child if isinstance(child, Node) else self

    def plain(self) -> Any:
        """Return the value with fresh dicts and lists, and without nodes."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def format_key(path: KeyPath) -> str:
    """Return ``inputs[0].shape``; a name with other characters is quoted (``layers["a.b"]``)."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{shorten(ascii(part))}]"
    return text


def shorten(text: str, limit: int = 80) -> str:
    """Cut a text for a message."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def show(value: object) -> str:
    """Describe a value that was found, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        return shorten(repr(value))
    if isinstance(value, int):
        # The decimal digits of a huge integer are refused by Python itself.
        return str(value) if value.bit_length() < 128 else "a huge integer"
    if isinstance(value, float):
        return repr(float(value))
    return f"an object of type {type(value).__name__}"


def build(value: object, origin: Origin, lines: Lines | None = None) -> Node:
    """Turn plain values into a tree.

    Args:
        value: text, numbers, booleans, None, paths, lists, tuples and mappings with text keys.
        origin: where it was written.
        lines: 1-based lines by key path, as far as they are known.

    Raises:
        SpecError: something else is in it, or it is too deep or too large.
    """
    return _Builder(origin, lines or {}).node(value, (), None)


class _Builder:
    def __init__(self, origin: Origin, lines: Lines) -> None:
        self._origin = origin
        self._lines = lines
        self._count = 0

    def node(self, value: object, path: KeyPath, line: int | None) -> Node:
        node = Node(None, path, self._origin, self._lines.get(path, line))
        self._count += 1
        if self._count > MAX_NODES:
            raise Node(None, (), self._origin).error(f"more than {MAX_NODES} values in one spec")
        if len(path) > MAX_DEPTH:
            raise node.error(f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, Mapping):
            children = {}
            for name, child in value.items():
                if not isinstance(name, str):
                    raise node.error(
                        f"found the key {show(name)}; expected text", hint="put it in quotes"
                    )
                children[name] = self.node(child, (*path, name), node.line)
            node.value = children
        elif isinstance(value, list | tuple):
            node.value = [
                self.node(child, (*path, index), node.line) for index, child in enumerate(value)
            ]
        elif isinstance(value, PurePath):
            node.value = str(value)
        elif isinstance(value, datetime | date | time):
            node.value = value.isoformat()
        elif value is None or isinstance(value, str | bool | int | float | TensorSpec):
            node.value = value
        else:
            raise node.error(
                f"found an object of type {type(value).__name__};"
                " expected text, a number, true or false, a list or a mapping"
            )
        return node
