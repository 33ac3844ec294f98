"""Turns plain values into the dataclasses of a spec by their type hints, and those into a schema.

A section of the spec is a frozen dataclass. Each field's type says what is accepted, its metadata
what it means; the JSON Schema comes from the same declarations.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .source import KeyPath, SpecSource

Section = TypeVar("Section")

ENTRYPOINT = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


@dataclass(frozen=True, eq=False)  # compared by identity: a schema cannot be hashed
class Rule:
    """A condition on a value, beyond its type; put into ``Annotated``.

    Attributes:
        expected: what is expected, for messages (``a number above 0``).
        check: whether a converted value fits.
        schema: the same as JSON Schema keywords.
    """

    expected: str
    check: Callable[[Any], bool]
    schema: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OneOrMany:
    """A list that may be given as one text; put into ``Annotated[tuple[str, ...], ...]``.

    Attributes:
        lines: the text is split into lines; otherwise it is the only entry.
    """

    lines: bool = False

    def listed(self, value: Any) -> Any:
        """Return a list for a text, and anything else as it is."""
        if not isinstance(value, str):
            return value
        return value.splitlines() if self.lines else [value]


@dataclass(frozen=True)
class Exists:
    """The path must be there; put into ``Annotated[Path, ...]``."""

    kind: Literal["file", "folder"]


def doc(text: str, default: Any = MISSING, factory: Any = MISSING, **metadata: Any) -> Any:
    """Declare a field of a section: its meaning and its default; without one it is required."""
    metadata["doc"] = text
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_section(cls: type[Section], value: Any, source: SpecSource, path: KeyPath) -> Section:
    """Build a section from a mapping.

    A section may define ``shorthand(value)``, which turns another value into the mapping (a string
    that names a loss, say) or returns None, and a field's metadata may name ``aliases``.

    Raises:
        SpecError: an unknown or missing key, or a value that does not fit; with file, line and key.
    """
    if not isinstance(value, Mapping):
        shorthand = getattr(cls, "shorthand", None)
        expanded = None if shorthand is None else shorthand(value)
        if expanded is None:
            raise source.error(path, f"found {describe(value)}; expected a mapping")
        value = expanded
    hints = _hints(cls)
    declared = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    names = {alias: name for name in declared for alias in _aliases(declared[name])}
    rest = next((name for name, item in declared.items() if item.metadata.get("rest")), None)
    found: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for key, entry in value.items():
        name = names.get(str(key))
        if name is None or name == rest:
            if rest is None:
                raise unknown_key(source, path, str(key), sorted(names))
            others[str(key)] = entry
        elif name in found:
            raise source.error((*path, str(key)), f"{name!r} is there under two spellings")
        else:
            found[name] = parse_value(hints[name], entry, source, (*path, str(key)))
    if rest is not None:
        found[rest] = others
    for name, item in declared.items():
        if name not in found and item.default is MISSING and item.default_factory is MISSING:
            raise source.error(path, f"the key {name!r} is missing")
    return cls(**found)


def unknown_key(source: SpecSource, path: KeyPath, key: str, known: list[str]) -> Exception:
    """Build the error about a key that nothing knows, with the nearest one that is known."""
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return source.error((*path, key), "unknown key", hint)


def parse_value(hint: Any, value: Any, source: SpecSource, path: KeyPath) -> Any:
    """Convert a plain value to what a type hint says.

    Raises:
        SpecError: it does not fit.
    """
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is not None and hasattr(hint, "__metadata__"):
        return _parse_annotated(arguments[0], hint.__metadata__, value, source, path)
    if origin in (Union, types.UnionType):
        return _parse_union(arguments, value, source, path)
    if origin is Literal:
        if value in arguments and type(value) in {type(item) for item in arguments}:
            return value
        near = get_close_matches(str(value), [str(item) for item in arguments], n=1)
        raise source.error(
            path,
            f"found {describe(value)}; expected one of {', '.join(map(str, arguments))}",
            f"did you mean {near[0]!r}?" if near else None,
        )
    if origin is tuple:
        return _parse_tuple(arguments, value, source, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise source.error(path, f"found {describe(value)}; expected a mapping")
        return {
            str(key): parse_value(arguments[1], entry, source, (*path, str(key)))
            for key, entry in value.items()
        }
    if is_dataclass(hint):
        return parse_section(hint, value, source, path)  # type: ignore[arg-type]
    return _parse_plain(hint, value, source, path)


def _parse_plain(hint: Any, value: Any, source: SpecSource, path: KeyPath) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and is_number and math.isfinite(value) and int(value) == value:
        return int(value)
    if hint is float and is_number:
        try:
            return float(value)
        except OverflowError:
            pass
    if hint is str and isinstance(value, str) and value:
        return value
    if hint is Path and isinstance(value, str | Path) and str(value) and "\0" not in str(value):
        place = Path(value)
        try:
            place = place.expanduser()
        except RuntimeError as error:
            raise source.error(path, f"found {describe(value)}: {error}") from error
        return place if place.is_absolute() else source.root / place
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    expected = names.get(hint, "a path" if hint is Path else "nothing")
    raise source.error(path, f"found {describe(value)}; expected {expected}")


def _parse_annotated(
    hint: Any, rules: tuple[Any, ...], value: Any, source: SpecSource, path: KeyPath
) -> Any:
    for rule in rules:
        if isinstance(rule, OneOrMany):
            value = rule.listed(value)
    converted = parse_value(hint, value, source, path)
    for rule in rules:
        if isinstance(rule, Rule) and not rule.check(converted):
            raise source.error(path, f"found {describe(value)}; expected {rule.expected}")
        if isinstance(rule, Exists):
            try:
                there = converted.is_file() if rule.kind == "file" else converted.is_dir()
            except OSError:
                there = False
            if not there:
                raise source.error(path, f"{converted}: no such {rule.kind}")
    return converted


def _parse_union(arguments: tuple[Any, ...], value: Any, source: SpecSource, path: KeyPath) -> Any:
    from ..errors import SpecError

    if value is None and type(None) in arguments:
        return None
    options = [item for item in arguments if item is not type(None)]
    if len(options) == 1:
        return parse_value(options[0], value, source, path)
    for option in options:
        try:
            return parse_value(option, value, source, path)
        except SpecError as error:
            # A mapping can only have been meant for the option that takes mappings.
            if isinstance(value, Mapping) and is_dataclass(option):
                raise error
    expected = " or ".join(_hint_name(option) for option in options)
    raise source.error(path, f"found {describe(value)}; expected {expected}")


def _parse_tuple(
    arguments: tuple[Any, ...], value: Any, source: SpecSource, path: KeyPath
) -> tuple[Any, ...]:
    many = len(arguments) == 2 and arguments[1] is Ellipsis
    if not isinstance(value, list | tuple):
        raise source.error(path, f"found {describe(value)}; expected a list")
    if many:
        hints = [arguments[0]] * len(value)
    else:
        hints = list(arguments)
        if len(value) != len(hints):
            raise source.error(path, f"found a list of {len(value)}; expected one of {len(hints)}")
    return tuple(
        parse_value(hint, item, source, (*path, index))
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def describe(value: Any) -> str:
    """Return a short description of a value, for messages."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint_name(hint: Any) -> str:
    if hasattr(hint, "__metadata__"):
        rules = [rule.expected for rule in hint.__metadata__ if isinstance(rule, Rule)]
        return rules[0] if rules else _hint_name(get_args(hint)[0])
    if is_dataclass(hint):
        return "a mapping"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if hint in names:
        return names[hint]
    if get_origin(hint) is Literal:
        return " or ".join(repr(item) for item in get_args(hint))
    return {tuple: "a list", dict: "a mapping"}.get(get_origin(hint), "a path")


def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _aliases(item: Any) -> tuple[str, ...]:
    return (item.name, *item.metadata.get("aliases", ()))


def section_schema(cls: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema of a section."""
    hints = _hints(cls)
    properties: dict[str, Any] = {}
    required: list[str] = []
    rest = False
    for item in fields(cls):
        if item.metadata.get("rest"):
            rest = True
            continue
        if item.metadata.get("hidden"):
            continue
        entry = {**value_schema(hints[item.name]), "description": item.metadata.get("doc", "")}
        if item.default is not MISSING and isinstance(item.default, str | int | float | bool):
            entry["default"] = item.default
        for name in _aliases(item):
            properties[name] = entry
        if item.default is MISSING and item.default_factory is MISSING:
            required.append(item.name)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "additionalProperties": rest,
    }
    if required:
        schema["required"] = required
    short = getattr(cls, "shorthand_types", None)
    return schema if short is None else {"anyOf": [schema, {"type": list(short)}]}


def value_schema(hint: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type hint."""
    if hint is Any:
        return {}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is not None and hasattr(hint, "__metadata__"):
        schema = value_schema(arguments[0])
        for rule in hint.__metadata__:
            if isinstance(rule, Rule):
                schema = {**schema, **rule.schema}
            if isinstance(rule, OneOrMany):
                schema = {"anyOf": [schema, {"type": "string"}]}
        return schema
    if origin in (Union, types.UnionType):
        return {"anyOf": [value_schema(item) for item in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return {"type": "array", "items": value_schema(arguments[0])}
        items = [value_schema(item) for item in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin is dict:
        return {"type": "object", "additionalProperties": value_schema(arguments[1])}
    if is_dataclass(hint):
        return section_schema(hint)  # type: ignore[arg-type]
    names = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
    return {"type": "null" if hint is type(None) else names[hint]}
