"""Turns a tree of nodes into section dataclasses, by walking their type hints."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from ..errors import SpecError
from .canonical import inner_types
from .declare import COMPONENT, ENTRYPOINT, Component, Rule, Section, keys_of, known_names
from .hints import did_you_mean
from .nodes import KeyPath, Node, show
from .tensors import TensorSpec, parse_tensor_specs

S = TypeVar("S", bound=Section)

_COMPONENT = Rule("", pattern=COMPONENT, form="a built-in name or module:attribute")


class Parser:
    """Parses canonical trees (see :mod:`.canonical`).

    Args:
        check_files: paths of input files have to exist.
    """

    def __init__(self, check_files: bool = True) -> None:
        self._check_files = check_files

    def section(self, node: Node, section: type[S]) -> S:
        """Parse a mapping as a section.

        Raises:
            SpecError: it is no mapping; a key is unknown, missing, or has an impossible value.
        """
        if not isinstance(node.value, dict):
            raise node.wrong("a mapping")
        declared = keys_of(section)
        for name, child in node.value.items():
            if name not in declared:
                raise unknown_key(child, name, section)
        values = {}
        for name, item in declared.items():
            if name in node.value:
                values[name] = self.value(node.value[name], item.hint, item.rule)
            elif item.required:
                raise node.error(
                    f"the key {name!r} is missing; expected {words(item.hint, item.rule)}"
                )
        return section(**values).checked(node)

    def value(self, node: Node, hint: Any, rule: Rule) -> Any:
        """Parse a value as the type ``hint`` within ``rule``.

        Raises:
            SpecError: it is not of that type, or out of range.
        """
        kind = get_origin(hint)
        if hint is Any:
            return node.plain()
        if kind in (Union, types.UnionType):
            return self._union(node, hint, rule)
        if hint == tuple[TensorSpec, ...]:
            return _tensors(node)
        if hint is Component:
            return self._component(node)
        if is_dataclass(hint) and isinstance(hint, type) and issubclass(hint, Section):
            return self.section(node, hint)
        if kind is tuple:
            return self._tuple(node, hint, rule)
        if kind is dict:
            if not isinstance(node.value, dict):
                raise node.wrong(words(hint, rule))
            item = get_args(hint)[1]
            return {name: self.value(child, item, rule) for name, child in node.value.items()}
        if kind is Literal:
            return _choice(node, hint, rule)
        if hint is Path:
            return self._path(node, rule)
        return _SCALARS[hint](node, rule)

    def _union(self, node: Node, hint: Any, rule: Rule) -> Any:
        options = get_args(hint)
        if type(None) in options and node.value is None:
            return None
        options = tuple(option for option in options if option is not type(None))
        if len(options) == 1:
            return self.value(node, options[0], rule)
        for option in options:
            try:
                return self.value(node, option, rule)
            except SpecError:
                continue
        raise node.wrong(words(hint, rule))

    def _tuple(self, node: Node, hint: Any, rule: Rule) -> tuple[Any, ...]:
        items = get_args(hint)
        found = node.value
        if isinstance(found, str) and rule.single == "item":
            found = [node]
        elif isinstance(found, str) and rule.single == "lines":
            lines = (line.split("#")[0].strip() for line in found.splitlines())
            found = [node.with_value(line) for line in lines if line]
        if not isinstance(found, list):
            raise node.wrong(words(hint, rule))
        if items[-1] is Ellipsis:
            if len(found) < rule.min_items:
                raise node.wrong(f"at least {rule.min_items} of them in the list")
            return tuple(self.value(child, items[0], rule) for child in found)
        if len(found) != len(items):
            raise node.error(f"found {len(found)} values; expected {words(hint, rule)}")
        return tuple(
            self.value(child, item, rule) for child, item in zip(found, items, strict=True)
        )

    def _component(self, node: Node) -> Component:
        if isinstance(node.value, str):
            return Component(_text(node, _COMPONENT))
        if not isinstance(node.value, dict):
            raise node.wrong(words(Component, _COMPONENT))
        if "name" not in node.value:
            raise node.error(f"the key 'name' is missing; expected {_COMPONENT.form}")
        kwargs = node.plain()
        del kwargs["name"]
        return Component(_text(node.value["name"], _COMPONENT), kwargs)

    def _path(self, node: Node, rule: Rule) -> Path:
        if not isinstance(node.value, str) or not node.value.strip() or "\0" in node.value:
            raise node.wrong(words(Path, rule))
        try:
            path = node.origin.root / Path(node.value).expanduser()
            if ".." in path.parts:
                path = path.resolve()
            if rule.exists is None or not self._check_files:
                return path
            is_file, is_folder = path.is_file(), path.is_dir()
        except RuntimeError:
            raise node.wrong("a path; the home folder of '~' is unknown") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise node.error(f"found {show(node.value)}, which cannot be read: {reason}") from None
        if rule.exists == "file" and is_folder:
            raise node.error(f"{path}: found a folder; expected a file")
        if rule.exists == "folder" and path.exists() and not is_folder:
            raise node.error(f"{path}: found a file; expected a folder")
        if not (is_file or is_folder or (rule.exists == "file" and path.exists())):
            raise node.error(f"{path}: no such {rule.exists}")
        return path


def unknown_key(node: Node, name: str, section: type) -> SpecError:
    """Return the error for a key that a section does not have, with the nearest one it has."""
    below = [
        f"did you mean '{outer}.{name}'?"
        for outer, item in keys_of(section).items()
        for inner in inner_types(item.hint)
        if isinstance(inner, type) and issubclass(inner, Section) and name in known_names(inner)
    ]
    hint = below[0] if below else did_you_mean(name, known_names(section))
    known = "" if hint else f"; expected one of {', '.join(keys_of(section))}"
    return node.error(f"unknown key {show(name)}{known}", hint=hint)


def words(hint: Any, rule: Rule) -> str:
    """Say what a key of that type accepts: ``a number of at least 0``."""
    kind = get_origin(hint)
    if hint is Component:
        return "a name, or a mapping with the key name"
    if kind in (Union, types.UnionType):
        return " or ".join(words(item, rule) for item in get_args(hint) if item is not type(None))
    if kind is Literal:
        choices = get_args(hint)
        names = [item if isinstance(item, str) else str(item) for item in choices]
        return f"one of {', '.join(names)}" if len(names) > 1 else repr(names[0])
    if kind is tuple:
        items = get_args(hint)
        text = "text or " if rule.single else ""
        return f"{text}a list" if items[-1] is Ellipsis else f"a list of {len(items)} values"
    if kind is dict or (isinstance(hint, type) and issubclass(hint, Section)):
        return "a mapping"
    if hint in (int, float):
        return ("an integer" if hint is int else "a number") + _limits(rule)
    return {bool: "true or false", Path: "a path", str: rule.form or "text"}.get(hint, "a value")


def _limits(rule: Rule) -> str:
    if rule.minimum is not None and rule.maximum is not None:
        return f" from {rule.minimum:g} to {rule.maximum:g}"
    if rule.minimum is not None:
        return f" of at least {rule.minimum:g}"
    return "" if rule.maximum is None else f" of at most {rule.maximum:g}"


def _text(node: Node, rule: Rule) -> str:
    value = node.value
    if not isinstance(value, str):
        raise node.wrong(words(str, rule))
    if not value.strip() and not rule.allow_empty:
        raise node.wrong(words(str, rule))
    if rule.pattern is not None and re.fullmatch(rule.pattern, value) is None:
        hint = None
        if rule.pattern == ENTRYPOINT and ".py:" in value:
            hint = "leave out '.py': it names a module"
        raise node.wrong(words(str, rule), hint=hint)
    return value


def _bool(node: Node, rule: Rule) -> bool:
    if not isinstance(node.value, bool):
        raise node.wrong("true or false")
    return node.value


def _integer(node: Node, rule: Rule) -> int:
    if not isinstance(node.value, int) or isinstance(node.value, bool):
        raise node.wrong(words(int, rule))
    _check_limits(node, node.value, words(int, rule), rule)
    return int(node.value)


def _number(node: Node, rule: Rule) -> float:
    expected = words(float, rule)
    if not isinstance(node.value, int | float) or isinstance(node.value, bool):
        raise node.wrong(expected)
    try:
        value = float(node.value)
    except OverflowError:
        raise node.wrong(expected) from None
    if not math.isfinite(value):
        raise node.wrong(expected)
    _check_limits(node, value, expected, rule)
    return value


def _check_limits(node: Node, value: float, expected: str, rule: Rule) -> None:
    low = rule.minimum is not None and value < rule.minimum
    if low or (rule.maximum is not None and value > rule.maximum):
        raise node.wrong(expected)


def _choice(node: Node, hint: Any, rule: Rule) -> Any:
    choices = get_args(hint)
    value = node.value
    if rule.upper and isinstance(value, str):
        value = value.upper()
    for choice in choices:
        # 1 equals True and 1.0, which are no integers here.
        if type(value) is type(choice) and value == choice:
            return choice
    texts = [choice for choice in choices if isinstance(choice, str)]
    hint_text = did_you_mean(node.value, texts) if isinstance(node.value, str) else None
    raise node.wrong(words(hint, rule), hint=hint_text)


_SCALARS: dict[Any, Callable[[Node, Rule], Any]] = {
    str: _text,
    bool: _bool,
    int: _integer,
    float: _number,
}

_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def _tensors(node: Node) -> tuple[TensorSpec, ...]:
    try:
        return parse_tensor_specs(node.plain(), "x")
    except SpecError as error:
        below: KeyPath = tuple(
            int(index) if index else name for index, name in _PART.findall(error.key or "x")[1:]
        )
        reason, hint = error.reason, error.hint
    # Point at the deepest part that was written.
    for part in below:
        children = node.value
        known = isinstance(children, dict) and part in children
        if not known and not (isinstance(children, list) and part in range(len(children))):
            break
        node = children[part]
    raise node.error(reason, hint=hint)
