"""How sections declare their keys: the loader and the JSON Schema are both driven by this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_type_hints

from .nodes import Node
from .tensors import TensorSpec

_NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
ENTRYPOINT = rf"^{_NAME}:{_NAME}$"
"""The form of ``module:attribute``."""

COMPONENT = rf"^([^\s:]+|{_NAME}:{_NAME})$"
"""The form of a built-in name or ``module:attribute``."""


@dataclass(frozen=True)
class Rule:
    """What a key accepts beyond its type. Limits hold for every scalar in a list or a mapping.

    Attributes:
        description: what the key means, in one sentence.
        minimum: the lowest number.
        maximum: the highest number.
        pattern: a regular expression that text has to match.
        form: what the pattern stands for, in words.
        allow_empty: empty text is allowed.
        exists: the path has to be there, as a file or as a folder.
        min_items: the least number of list entries.
        single: what one text in place of a list means: its only item, or one item a line.
        upper: text is read in upper case.
        aliases: other names of the key.
    """

    description: str
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None
    form: str | None = None
    allow_empty: bool = False
    exists: Literal["file", "folder"] | None = None
    min_items: int = 0
    single: Literal["item", "lines"] | None = None
    upper: bool = False
    aliases: tuple[str, ...] = ()


def key(
    rule: Rule | str,
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | Any = MISSING,
) -> Any:
    """Declare a key of a section; without a default it has to be given.

    Args:
        rule: what it accepts, or just its description.
        default: its value when it is left out.
        default_factory: makes that value, for dicts.
    """
    metadata = {"rule": rule if isinstance(rule, Rule) else Rule(rule)}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    """Base of the spec's sections: frozen dataclasses whose fields are declared with :func:`key`.

    Attributes:
        shorthand: the key that a text in place of the section gives.
        also: JSON Schemas of what :meth:`prepare` accepts besides a mapping.
    """

    shorthand: ClassVar[str] = ""
    also: ClassVar[tuple[dict[str, Any], ...]] = ()

    @classmethod
    def prepare(cls, node: Node) -> Node:
        """Turn another spelling of the section into its mapping; anything else is left as it is."""
        if cls.shorthand and isinstance(node.value, str):
            return node.wrapped(cls.shorthand)
        return node

    def checked(self, node: Node) -> Self:
        """Check the keys against each other; return the section, or a mended copy.

        Args:
            node: what it was read from, to point at.

        Raises:
            SpecError: they do not go together.
        """
        return self


@dataclass(frozen=True)
class Component:
    """Something built in or of the user's own, with its arguments: ``{name: SGD, lr: 0.1}``.

    Attributes:
        name: a built-in name, or ``module:attribute``.
        kwargs: its keyword arguments.
    """

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def is_entrypoint(self) -> bool:
        """Whether the name is ``module:attribute``."""
        return ":" in self.name

    def to_dict(self) -> dict[str, Any]:
        """Return ``{name, **kwargs}``."""
        return {"name": self.name, **self.kwargs}


@dataclass(frozen=True)
class Key:
    """A declared key of a section.

    Attributes:
        name: its name.
        hint: its type.
        rule: what it accepts beyond the type.
        required: it has no default.
        default: its default; None when it is required.
    """

    name: str
    hint: Any
    rule: Rule
    required: bool
    default: Any


_KEYS: dict[type, dict[str, Key]] = {}


def keys_of(section: type) -> dict[str, Key]:
    """Return the declared keys of a section by name, in order."""
    if section not in _KEYS:
        _KEYS[section] = _declared(section)
    return _KEYS[section]


def _declared(section: type) -> dict[str, Key]:
    hints = get_type_hints(section)
    return {
        item.name: _key(item, hints[item.name])
        for item in fields(section)
        if "rule" in item.metadata
    }


def _key(item: Field[Any], hint: Any) -> Key:
    default = item.default
    if item.default_factory is not MISSING:
        default = item.default_factory()
    required = default is MISSING
    return Key(item.name, hint, item.metadata["rule"], required, None if required else default)


def known_names(section: type) -> dict[str, str]:
    """Return every name that a section accepts, aliases included, with the key that it means."""
    names: dict[str, str] = {}
    for name, declared in keys_of(section).items():
        names[name] = name
        names.update(dict.fromkeys(declared.rule.aliases, name))
    return names


def plain_values(value: Any) -> Any:
    """Return what a spec file would hold for a section or a value of one; defaults are left out."""
    if isinstance(value, Component | TensorSpec):
        return value.to_dict()
    if isinstance(value, Section):
        keys = keys_of(type(value))
        own = {name: getattr(value, name) for name in keys}
        return {
            name: plain_values(found)
            for name, found in own.items()
            if keys[name].required or found != keys[name].default
        }
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: plain_values(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(child) for child in value]
    return value
