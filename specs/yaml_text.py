"""YAML 1.2 (core schema) to plain values and the line of every key."""

from __future__ import annotations

import re

import yaml

from ..errors import SpecError
from .nodes import MAX_DEPTH, MAX_NODES, KeyPath, format_key, shorten

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Composes nodes; resolves plain scalars as YAML 1.2 does.

    PyYAML follows YAML 1.1, where ``no`` and ``on`` are booleans, ``1e-4`` is text, ``1:30`` is 90.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own declaration


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def parse_yaml(text: str) -> tuple[object, dict[KeyPath, int]]:
    """Return the plain value of one YAML document, and 1-based lines by key path.

    Raises:
        SpecError: a syntax error, a key given twice, a tag that is not plain data, or too large a
            document, which few aliases can make; ``error.line`` says where.
    """
    root = compose(text)
    if root is None:
        return None, {}
    expander = _Expander()
    return expander.expand(root, (), 0), expander.lines


def compose(text: str) -> yaml.Node | None:
    """Return the node graph of one YAML document; None when there is nothing but comments.

    Raises:
        SpecError: a syntax error.
    """
    try:
        loader = _Loader(text)
        try:
            node: yaml.Node | None = loader.get_single_node()
            return node
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        line = None if mark is None else mark.line + 1
        raise SpecError(f"not valid YAML: {_one_line(reason)}", line=line) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"not valid YAML: {_one_line(error.reason)}", line=line) from None
    except RecursionError:
        raise SpecError("not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise SpecError(f"not valid YAML: {_one_line(str(error))}") from None


def _one_line(text: str) -> str:
    return shorten(" ".join(text.split()), 160)


class _Expander:
    """Turns the node graph into plain values; aliases are copied, so their number is limited."""

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._count = 0

    def expand(self, node: yaml.Node, path: KeyPath, depth: int) -> object:
        line = node.start_mark.line + 1
        self._count += 1
        if self._count > MAX_NODES:
            raise SpecError(f"more than {MAX_NODES} values: its aliases repeat each other")
        if depth > MAX_DEPTH:
            raise SpecError(
                f"nested more than {MAX_DEPTH} levels deep, or an alias that contains itself",
                line=line,
            )
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [
                self.expand(child, (*path, index), depth + 1)
                for index, child in enumerate(node.value)
            ]
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, path)
        raise _tag_error(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, object]:
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        # What is merged in comes first, so that the lines of the mapping's own keys stand.
        for key_node, value_node in sorted(node.value, key=lambda pair: not _merges(pair[0])):
            line = key_node.start_mark.line + 1
            if _merges(key_node):
                merged = {**self._merged(value_node, path, depth), **merged}
                continue
            name = _scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(name, str):
                found = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list"
                raise SpecError(
                    f"found the key {shorten(str(found))}; expected text",
                    line=line,
                    key=format_key(path) or None,
                    hint="put it in quotes",
                )
            below = (*path, name)
            if name in own:
                raise SpecError(
                    f"given twice, first in line {self.lines[below]}",
                    line=line,
                    key=format_key(below),
                )
            self.lines[below] = line
            own[name] = self.expand(value_node, below, depth + 1)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: KeyPath, depth: int) -> dict[str, object]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, object] = {}
        for source in reversed(sources):
            value = self.expand(source, path, depth + 1)
            if not isinstance(value, dict):
                raise SpecError(
                    "found no mapping behind '<<'; expected one, or a list of mappings",
                    line=node.start_mark.line + 1,
                    key=format_key(path) or None,
                )
            found.update(value)
        return found


def _merges(key_node: yaml.Node) -> bool:
    return key_node.tag == _TAG + "merge"


def _tag_error(node: yaml.Node, path: KeyPath) -> SpecError:
    return SpecError(
        f"found the YAML tag {shorten(ascii(node.tag.replace(_TAG, '!!')))}; expected plain data",
        line=node.start_mark.line + 1,
        key=format_key(path) or None,
    )


def _scalar(node: yaml.ScalarNode, path: KeyPath) -> object:
    text: str = node.value
    kind = node.tag.removeprefix(_TAG)
    try:
        if kind in ("str", "merge"):
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "int":
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except (ValueError, KeyError):
        raise SpecError(
            f"found {shorten(repr(text))}; expected a value of the YAML type !!{kind}",
            line=node.start_mark.line + 1,
            key=format_key(path) or None,
        ) from None
    raise _tag_error(node, path)
