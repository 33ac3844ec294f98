"""``--set key.path=value``: changes to a spec from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SpecError
from .canonical import canonical_path
from .declare import Section
from .nodes import KeyPath, Node, Origin, build, format_key, shorten, show
from .sections import EVALUATION_KEYS, STAGE_KEYS
from .yaml_text import parse_yaml

_FILE = "--set"
_SEGMENT = re.compile(
    r"""\[(?P<index>[0-9]{1,6})\]|\[(?P<quote>["'])(?P<quoted>.*?)(?P=quote)\]|(?P<dot>\.?)(?P<name>[\w-]+)"""
)


@dataclass(frozen=True)
class Override:
    """One change.

    Attributes:
        path: the key path as it was written.
        value: the new value.
    """

    path: KeyPath
    value: Node

    def apply(self, root: Node, section: type[Section]) -> None:
        """Change a canonical tree; mappings on the way are made where there are none.

        Args:
            root: the tree of a model spec.
            section: what it is the tree of.

        Raises:
            SpecError: the way goes through a value that is no mapping, or past the end of a list.
        """
        path = canonical_path(self.path, section)
        if path[0] in EVALUATION_KEYS:
            path = ("evaluation", *path)
        elif path[0] in STAGE_KEYS:
            path = ("optimization", *path)
        stages = root.value["optimization"].value
        if path[0] == "optimization" and len(path) > 1 and isinstance(path[1], str):
            # Without an index it is meant for every stage.
            for index in range(len(stages) if isinstance(stages, list) else 0):
                self._put(root, ("optimization", index, *path[1:]))
        else:
            self._put(root, path)

    def _put(self, root: Node, path: KeyPath) -> None:
        node = root
        for depth, part in enumerate(path[:-1], start=1):
            children = self._children(node, part, path[: depth - 1])
            if isinstance(children, dict) and part not in children:
                # As many keys as there are left after this one were written behind it.
                written = self.path[: max(1, len(self.path) - (len(path) - depth))]
                children[str(part)] = Node({}, written, self.value.origin)
            child: Node = children[part]  # type: ignore[index]
            if child.value is None:
                child.value = {}
            node = child
        last = path[-1]
        self._children(node, last, path[:-1])[last] = build(  # type: ignore[index]
            self.value.plain(), self.value.origin
        )
        self._relabel(node.value[last])

    def _children(self, node: Node, part: str | int, path: KeyPath) -> dict[str, Node] | list[Node]:
        """Return the container that ``part`` names a place in."""
        fits = isinstance(node.value, dict if isinstance(part, str) else list)
        if not fits:
            raise SpecError(
                f"{format_key(path)!r} is {show(node.value)}; expected"
                f" {'a mapping' if isinstance(part, str) else 'a list'}",
                file=_FILE,
                key=format_key(self.path),
            )
        if isinstance(part, int) and part >= len(node.value):
            raise SpecError(
                f"{format_key(path)!r} has {len(node.value)} entries, numbered from 0",
                file=_FILE,
                key=format_key(self.path),
            )
        children: dict[str, Node] | list[Node] = node.value
        return children

    def _relabel(self, node: Node) -> None:
        """Let errors name the keys as they were written after ``--set``."""
        node.path = (*self.path, *node.path)
        children = node.value.values() if isinstance(node.value, dict) else node.value
        if isinstance(node.value, dict | list):
            for child in children:
                self._relabel(child)


def parse_overrides(texts: Sequence[str], root: Path) -> list[Override]:
    """Parse ``key.path=value`` texts; a name with other characters is written ``["a.b"]``.

    Args:
        texts: the overrides.
        root: the folder that relative paths in them are resolved against.

    Raises:
        SpecError: one has another form, or its value is not valid YAML.
    """
    if isinstance(texts, str):
        texts = [texts]
    return [_parse(text, Origin(_FILE, root)) for text in texts]


def _parse(text: str, origin: Origin) -> Override:
    path: list[str | int] = []
    position = 0
    while match := _SEGMENT.match(text, position):
        if (match["name"] is not None and bool(match["dot"]) != bool(path)) or (
            not path and match["index"]
        ):
            break
        if match["index"] is not None:
            path.append(int(match["index"]))
        else:
            path.append(match["name"] if match["name"] is not None else match["quoted"])
        position = match.end()
    if not path or text[position : position + 1] != "=":
        raise SpecError(
            f"found {shorten(repr(text))}; expected key.path=value",
            file=_FILE,
            hint="for example optimization.delta=0.5, or inputs[0].shape=[batch, 3]",
        )
    written = text[position + 1 :]
    try:
        value: Any = parse_yaml(written)[0]
    except SpecError as error:
        # A version range such as >=2 is meant as text; to YAML it is a broken block.
        if not written.startswith((">", "|", "*", "&", "!", "%", "@", "`")):
            raise SpecError(error.reason, file=_FILE, key=format_key(tuple(path))) from None
        value = written
    node = build(value, origin)
    node.path = tuple(path)
    return Override(tuple(path), node)
