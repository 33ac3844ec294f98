"""What pruning did to a network, as JSON values: enough to do it to a fresh one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ...errors import ModelError
from ...frameworks.torch_recipe import VERSION, apply_recipe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Recipe:
    """New sizes for the layers of the user's own class; no weights and no code.

    Attributes:
        layers: sizes of every layer that shrank, by path (``{"in_channels": 3, ...}``).
        tensors: what is left of bare parameters and buffers, by path: ``{"dim", "kept"}``.
        attributes: numbers of modules that follow (``{"num_heads": 2}``), by path.
        groups: the channels that were kept of each group, by name: ``{"channels", "kept"}``, in
            the numbers of the model that was pruned first. For the record: sizes are what counts.
    """

    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def apply(self, module: nn.Module) -> nn.Module:
        """Resize a freshly built module in place, and return it; its weights are loaded afterwards.

        Raises:
            ModelError: it is another network.
        """
        return apply_recipe(module, self.to_dict(), type(module).__name__)

    def then(self, other: Recipe) -> Recipe:
        """Return the recipe that does this one, and then another that was made of its result.

        Raises:
            ModelError: the other one is of another network.
        """
        layers = {path: dict(sizes) for path, sizes in self.layers.items()} | {
            path: dict(sizes) for path, sizes in other.layers.items()
        }
        attributes = {path: dict(values) for path, values in self.attributes.items()}
        for path, values in other.attributes.items():
            attributes[path] = {**attributes.get(path, {}), **values}
        tensors = {path: dict(entry) for path, entry in self.tensors.items()}
        for path, entry in other.tensors.items():
            first = tensors.get(path)
            if first is not None and first["dim"] != entry["dim"]:
                raise ModelError(
                    f"{path} was pruned in dimension {first['dim']} and then in {entry['dim']};"
                    " expected the same"
                )
            kept = entry["kept"] if first is None else _composed(path, first, entry["kept"])
            tensors[path] = {"dim": entry["dim"], "kept": list(kept)}
        groups = {name: dict(entry) for name, entry in self.groups.items()}
        for name, entry in other.groups.items():
            first = groups.get(name)
            if first is None:
                groups[name] = dict(entry)
            elif len(first["kept"]) == entry["channels"]:
                groups[name] = {**first, "kept": _composed(name, first, entry["kept"])}
            else:  # what had several groups before has one now, or the other way round
                groups[f"{name}@{len(groups)}"] = dict(entry)
        return Recipe(layers, tensors, attributes, groups)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        sections = {
            "layers": self.layers,
            "tensors": self.tensors,
            "attributes": self.attributes,
            "groups": self.groups,
        }
        plain = {name: dict(section) for name, section in sections.items() if section}
        found: dict[str, Any] = json.loads(json.dumps({"version": VERSION, **plain}))
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` returned.

        Raises:
            ModelError: it is malformed, or of a version that is not known here.
        """
        if values.get("version") != VERSION:
            raise ModelError(
                f"channel recipe: found version {values.get('version')!r}; expected {VERSION}",
                hint="it was written by another version of Ingot",
            )
        known = ("layers", "tensors", "attributes", "groups")
        for name, section in values.items():
            if name == "version":
                continue
            if name not in known:
                raise ModelError(
                    f"channel recipe: found the key {name!r}; expected {', '.join(known)}"
                )
            if not isinstance(section, Mapping) or not all(
                isinstance(entry, Mapping) for entry in section.values()
            ):
                raise ModelError(f"channel recipe: {name}: expected a mapping of mappings")
        return cls(**{name: section for name, section in values.items() if name != "version"})


def _composed(name: str, first: Mapping[str, Any], kept: list[int]) -> list[int]:
    try:
        return [first["kept"][index] for index in kept]
    except IndexError:
        raise ModelError(
            f"{name}: the second recipe keeps {max(kept) + 1} or more channels where the first left"
            f" {len(first['kept'])}"
        ) from None
