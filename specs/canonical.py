"""Gives every section one spelling: aliases get their key's name, shorthands become mappings."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from .declare import Component, Section, keys_of, known_names
from .nodes import KeyPath, Node, format_key


def canonicalise(node: Node, section: type[Section]) -> Node:
    """Bring the tree of a section into its canonical form; doing it again changes nothing.

    What is not understood is left as it is, for the parser to refuse.

    Raises:
        SpecError: a key is given under two names, with two values.
    """
    if node.value is None:
        return node
    node = section.prepare(node)
    if not isinstance(node.value, dict):
        return node
    names = known_names(section)
    for name in list(node.value):
        own = names.get(name, name)
        if own != name:
            move(node, name, own)
    for name, item in keys_of(section).items():
        if name in node.value:
            node.value[name] = _canonical_value(node.value[name], item.hint)
    return node


def move(node: Node, name: str, own: str) -> None:
    """Rename a child of a mapping.

    Raises:
        SpecError: there is one of the new name already, with another value.
    """
    put(node, own, node.value.pop(name))


def put(node: Node, name: str, child: Node) -> None:
    """Add a child to a mapping.

    Raises:
        SpecError: there is one already, with another value.
    """
    there = node.value.get(name)
    if there is None:
        node.value[name] = child
    elif there.plain() != child.plain():
        line = "" if there.line is None else f" in line {there.line}"
        raise child.error(f"{format_key(there.path)!r}{line} says the same with another value")


def _canonical_value(node: Node, hint: Any) -> Node:
    kind = get_origin(hint)
    if kind in (Union, types.UnionType):
        for option in get_args(hint):
            node = _canonical_value(node, option)
    elif isinstance(hint, type) and issubclass(hint, Section):
        return canonicalise(node, hint)
    elif hint is Component and isinstance(node.value, str):
        return node.wrapped("name")
    elif kind is tuple and isinstance(node.value, list):
        item = get_args(hint)[0]
        node.value = [_canonical_value(child, item) for child in node.value]
    elif kind is dict and isinstance(node.value, dict):
        item = get_args(hint)[1]
        node.value = {name: _canonical_value(child, item) for name, child in node.value.items()}
    return node


def canonical_path(path: KeyPath, section: type[Section]) -> KeyPath:
    """Return a key path with every alias replaced by the key that it means."""
    found: list[str | int] = []
    hint: Any = section
    for part in path:
        own: str | int = part
        kind = get_origin(hint)
        if isinstance(hint, type) and issubclass(hint, Section) and isinstance(part, str):
            own = known_names(hint).get(part, part)
            item = keys_of(hint).get(str(own))
            hint = None if item is None else next(inner_types(item.hint), None)
        elif kind is tuple:
            hint = next(inner_types(get_args(hint)[0]), None)
        elif kind is dict:
            hint = next(inner_types(get_args(hint)[1]), None)
        else:
            hint = None
        found.append(own)
    return tuple(found)


def inner_types(hint: Any) -> Iterator[Any]:
    """Yield what a value of a type can be, besides None."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return (option for option in options if option is not type(None))
