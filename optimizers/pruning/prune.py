"""Takes channels away: a smaller copy of a model, and the recipe of how it got so."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ModelError, UsageError
from ...frameworks.base import first_line
from ...frameworks.torch_recipe import sizes_of
from ...specs.hints import did_you_mean
from .graph import ChannelGroup, Member
from .layers import channels_of, slots
from .modules import copy_module
from .recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

Keep = Mapping[str, Sequence[int]]
"""Channels to keep, by the name of their group; other groups stay as they are."""


def prune(
    module: nn.Module, keep: Keep, groups: Sequence[ChannelGroup]
) -> tuple[nn.Module, Recipe]:
    """Return a copy of a module that has some of its channels only.

    What it computes is what the module computes with the other channels set to 0 (see
    :func:`.masks.check_against_mask`, which has to be asked each time: tracing may have been
    wrong). In ``nn.MultiheadAttention``, where heads become narrower, the queries are scaled so
    that this holds there, too.

    Args:
        module: it stays as it is.
        keep: at least one channel of each group that is named.
        groups: what :func:`.graph.channel_groups` says of this module.

    Raises:
        UsageError: there is no such group or channel.
        ModelError: the module cannot be copied, or its tied weights would have to differ.
    """
    removed = removed_indices(keep, groups)
    pruned = copy_module(module)
    ties = _tied(pruned)
    layers: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for (path, side), (member, gone) in removed.items():
        if member.kind == "tensor":
            tensor = _tensor(pruned, path)
            kept = sorted(set(range(tensor.shape[member.dim])) - gone)
            tensors[path] = {"dim": member.dim, "kept": kept}
            continue
        layer = pruned.get_submodule(path)
        kept = sorted(set(range(channels_of(layer, member.kind, side))) - gone)
        sizes = layers.setdefault(path, dict(sizes_of(layer) or {}))
        try:
            _cut(layer, member, kept)
        except ValueError as error:
            raise ModelError(f"{path} cannot be pruned: {first_line(error)}") from error
        _note_size(sizes, member, side, len(kept))
    recipe = Recipe(layers, tensors, _attributes(keep, groups), _record(keep, groups))
    recipe.apply(pruned)
    _tie_again(pruned, ties)
    return pruned, recipe


def removed_indices(
    keep: Keep, groups: Sequence[ChannelGroup]
) -> dict[tuple[str, str], tuple[Member, set[int]]]:
    """Return the indices that go, by layer and side; groups that keep all are left out.

    Raises:
        UsageError: there is no such group or channel.
    """
    by_name = {group.name: group for group in groups}
    found: dict[tuple[str, str], tuple[Member, set[int]]] = {}
    for name, kept in keep.items():
        group = by_name.get(name)
        if group is None:
            raise UsageError(
                f"found no group of channels {name!r}; expected one of {', '.join(by_name)}",
                hint=did_you_mean(name, list(by_name)),
            )
        wrong = [index for index in kept if not 0 <= index < group.channels]
        if wrong or not kept or len(set(kept)) != len(kept):
            what = f"channel {wrong[0]}" if wrong else "a channel twice" if kept else "no channel"
            raise UsageError(
                f"group {name!r}: found {what}; expected different ones of 0 to"
                f" {group.channels - 1}, and at least one"
            )
        gone = group.removed(kept)
        for member in group.members if gone else ():
            entry = found.setdefault((member.path, member.side), (member, set()))
            entry[1].update(member.of(gone))
    return found


def _cut(layer: nn.Module, member: Member, kept: list[int]) -> None:
    from torch import nn

    for slot in slots(layer, member.kind, member.side):
        prefix, _, name = slot.name.rpartition(".")
        owner = layer.get_submodule(prefix)
        values = slot.select(kept)
        if name in owner._parameters:
            trained = slot.tensor.requires_grad
            owner._parameters[name] = nn.Parameter(values, requires_grad=trained)
        else:
            owner._buffers[name] = values
    if member.kind == "attention":
        _rescale(layer, len(kept))


def _rescale(layer: Any, width: int) -> None:
    """Undo that narrower heads are scaled by another root (1 / sqrt(head_dim))."""
    import torch

    factor = math.sqrt(width / layer.embed_dim)
    with torch.no_grad():
        layer.in_proj_weight[:width] *= factor
        if layer.in_proj_bias is not None:
            layer.in_proj_bias[:width] *= factor


def _note_size(sizes: dict[str, Any], member: Member, side: str, count: int) -> None:
    if member.kind == "conv":
        sizes["in_channels" if side == "in" else "out_channels"] = count
    elif member.kind == "depthwise":
        if sizes["in_channels"] == sizes["groups"] == sizes["out_channels"] or side == "in":
            sizes["in_channels"] = sizes["groups"] = count
        if side == "out":
            sizes["out_channels"] = count
    elif member.kind == "linear":
        sizes["in_features" if side == "in" else "out_features"] = count
    elif member.kind == "attention":
        sizes |= {"embed_dim": count, "head_dim": count // sizes["num_heads"]}
    elif member.kind in ("layer_norm", "rms_norm"):
        sizes["normalized_shape"] = [count]
    else:
        (name,) = sizes
        sizes[name] = count


def _attributes(keep: Keep, groups: Sequence[ChannelGroup]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for group in groups:
        kept = keep.get(group.name)
        if group.heads is None or kept is None or len(kept) == group.channels:
            continue
        found[group.heads.path] |= {name: len(kept) for name in group.heads.counts}
        width = len(kept) * group.heads.head_dim
        found[group.heads.path] |= dict.fromkeys(group.heads.widths, width)
    return {path: values for path, values in found.items() if values}


def _record(keep: Keep, groups: Sequence[ChannelGroup]) -> dict[str, dict[str, Any]]:
    return {
        group.name: {"channels": group.channels, "kept": sorted(keep[group.name])}
        for group in groups
        if len(keep.get(group.name, ())) not in (0, group.channels)
    }


def _tensor(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _places(module: nn.Module) -> dict[int, list[tuple[str, str]]]:
    found: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for path, layer in module.named_modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                found[id(parameter)].append((path, name))
    return found


def _tied(module: nn.Module) -> list[list[tuple[str, str]]]:
    """Return the places of each parameter that has several."""
    return [places for places in _places(module).values() if len(places) > 1]


def _tie_again(module: nn.Module, ties: list[list[tuple[str, str]]]) -> None:
    """Let tied weights, each pruned by itself, be one parameter again.

    Raises:
        ModelError: different channels of it were taken away.
    """
    import torch

    for places in ties:
        tensors = [module.get_submodule(path)._parameters[name] for path, name in places]
        first = tensors[0]
        assert first is not None
        for (path, name), tensor in zip(places, tensors, strict=True):
            assert tensor is not None
            if tensor.shape != first.shape or not torch.equal(tensor, first):
                one = ".".join(filter(None, places[0]))
                raise ModelError(
                    f"{one} and {path}.{name} are one parameter, and pruning would take different"
                    " channels of it away",
                    hint=f"exclude the layers that share it: {places[0][0]!r}, {path!r}",
                )
            module.get_submodule(path)._parameters[name] = first
