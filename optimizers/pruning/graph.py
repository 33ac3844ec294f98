"""The groups of channels that can only be pruned together.

torch-pruning (Fang et al., 2023, DepGraph, arXiv:2301.12900) traces the model and knows which
layers depend on each other. What is computed here is which single channels do: they are classes of
the smallest equivalence that its dependencies, the blocks of grouped convolutions and the heads of
attention allow. So any subset of a group's channels may be kept, but for none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from .classes import MAKES_OUTPUT, Channels
from .heads import HeadAttributes, attention_heads
from .layers import WEIGHT_KINDS, along, slots
from .modules import Inputs
from .tracing import UnprunableError, trace

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Member:
    """A dimension of a layer that loses values with its group.

    Attributes:
        path: of the layer, or of a bare parameter or buffer.
        side: ``out``, ``in``; what has one width only (normalisation, attention) is ``out``.
        kind: ``conv``, ``depthwise``, ``linear``, ``attention``, ``embedding``, ``batch_norm``
            and so on; ``tensor`` is a bare parameter or buffer.
        indices: those that belong to each channel of the group.
        dim: of a tensor, the dimension.
    """

    path: str
    side: str
    kind: str
    indices: tuple[tuple[int, ...], ...]
    dim: int = 0

    def of(self, channels: Iterable[int]) -> list[int]:
        """Return the indices that belong to some channels of the group, sorted."""
        return sorted({index for channel in channels for index in self.indices[channel]})


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that are pruned together.

    Attributes:
        name: path of the layer whose filters make the channels (with ``#2`` where it makes several
            groups); the same for every run of the same code.
        members: every dimension that shrinks.
        channels: how many there are; each may go, but one has to stay.
        granularity: filters of the naming layer in one channel: 1, the size of a head, the number
            of groups of a grouped convolution, ...
        kind: ``channels``, or ``heads`` of attention.
        parameters_per_channel: parameters of the model that one channel costs, as it is now.
        heads: attributes of a module that count the heads.
    """

    name: str
    members: tuple[Member, ...]
    channels: int
    granularity: int
    kind: str
    parameters_per_channel: float
    heads: HeadAttributes | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers whose outputs shrink."""
        return tuple(member.path for member in self.members if member.side == "out")

    def removed(self, kept: Iterable[int]) -> list[int]:
        """Return the channels that are not kept."""
        return sorted(set(range(self.channels)) - set(kept))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without the indices."""
        return {
            "name": self.name,
            "kind": self.kind,
            "channels": self.channels,
            "granularity": self.granularity,
            "parameters_per_channel": self.parameters_per_channel,
            "members": [
                {"path": member.path, "side": member.side, "kind": member.kind}
                for member in self.members
            ],
        }


@dataclass(frozen=True)
class ChannelGraph:
    """What can be pruned in a model, and what cannot.

    Attributes:
        groups: in the order of the modules.
        skipped: why the outputs of the other layers with weights stay as they are, by path.
    """

    groups: tuple[ChannelGroup, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


def channel_groups(
    module: nn.Module, inputs: Inputs, exclude: Sequence[str] = ()
) -> list[ChannelGroup]:
    """Return the groups of channels that can be pruned; see :func:`channel_graph`.

    Raises:
        UnprunableError: there is none; the message says which module stopped it.
        ModelError: the module cannot be copied.
    """
    return list(channel_graph(module, inputs, exclude).groups)


def channel_graph(module: nn.Module, inputs: Inputs, exclude: Sequence[str] = ()) -> ChannelGraph:
    """Find the groups of channels that can be pruned. The module is not changed.

    Args:
        module: any ``nn.Module``; it is run once, as a copy in eval mode.
        inputs: positional and keyword arguments for it; a small batch will do.
        exclude: patterns (as of shells) of groups, or of layers whose outputs have to stay.

    Returns:
        the groups, and why other layers stay. Layers that make the model's outputs always do.

    Raises:
        UnprunableError: nothing can be pruned; the message says which module stopped it.
        ModelError: the module cannot be copied.
        MissingDependencyError: torch-pruning is not installed.
    """
    found = trace(module, inputs)
    channels = Channels(found)
    heads = attention_heads(found, channels)
    groups: list[ChannelGroup] = []
    skipped: dict[str, str] = {}
    for classes in channels.by_members():
        reason = next((channels.blocked[c] for c in classes if c in channels.blocked), None)
        group = None if reason else _describe(found.module, channels, classes, heads)
        if group is not None and group.channels == 1:
            reason = "all of its channels depend on each other"
        if group is not None and reason is None:
            groups.append(group)
        else:
            for path in channels.filters(classes):
                skipped.setdefault(path, reason or "nothing in it has weights")
    for path, reason in channels.left_out():
        skipped.setdefault(path, reason)
    groups = _named(groups, found.names.values())
    for group in [group for group in groups if _is_excluded(group, exclude)]:
        groups.remove(group)
        for path in group.layers:
            skipped.setdefault(path, "it is excluded")
    for path in [path for group in groups for path in group.layers]:
        skipped.pop(path, None)
    if not groups:
        _refuse(module, skipped)
    return ChannelGraph(tuple(groups), skipped)


def _describe(
    module: nn.Module,
    channels: Channels,
    classes: list[int],
    heads: Mapping[frozenset[int], HeadAttributes],
) -> ChannelGroup | None:
    """Describe the classes that touch the same layers; None when none of these has weights."""
    places = channels.places(classes)
    order = {path: number for number, path in enumerate(channels.trace.names.values())}
    roots = [
        (WEIGHT_KINDS.index(channels.kind[place]) == 1, order[place[0]], place)
        for place in places
        if place[1] == "out" and channels.kind[place] in WEIGHT_KINDS
    ]
    if not roots:
        return None
    root = min(roots)[2]
    ordered = sorted(classes, key=lambda c: min(places[root][c]))
    members = tuple(
        Member(
            path,
            side,
            channels.kind[path, side],
            tuple(tuple(sorted(places[path, side][c])) for c in ordered),
            channels.dims.get(path, 0),
        )
        for path, side in sorted(places, key=lambda place: (order[place[0]], place[1] != "out"))
    )
    cost = sum(_cost(module, member) for member in members) / len(ordered)
    found = heads.get(frozenset(classes))
    return ChannelGroup(
        root[0],
        members,
        len(ordered),
        len(places[root][ordered[0]]),
        "channels" if found is None else "heads",
        round(cost, 1),
        found,
    )


def _cost(module: nn.Module, member: Member) -> float:
    """Return how many parameters a member loses with all channels of its group."""
    from torch import nn

    count = len(member.of(range(len(member.indices))))
    if member.kind == "tensor":
        tensor = module.get_parameter(member.path)
        return along("", tensor, member.dim).view[0, 0].numel() * count
    layer = module.get_submodule(member.path)
    total = 0
    for slot in slots(layer, member.kind, member.side):
        owner, _, name = slot.name.rpartition(".")
        if isinstance(getattr(layer.get_submodule(owner), name), nn.Parameter):
            total += slot.view[0, 0].numel() * count
    return total


def _is_excluded(group: ChannelGroup, patterns: Sequence[str]) -> bool:
    names = (group.name, *group.layers)
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _named(groups: list[ChannelGroup], order: Iterable[str]) -> list[ChannelGroup]:
    """Sort groups by module, and number those that one layer makes several of."""
    from dataclasses import replace

    place = {path: number for number, path in enumerate(order)}
    groups = sorted(groups, key=lambda group: (place[group.name], _first(group)))
    by_name: dict[str, list[ChannelGroup]] = defaultdict(list)
    for group in groups:
        by_name[group.name].append(group)
    return [
        replace(group, name=name if number == 1 else f"{name}#{number}")
        for name, same in by_name.items()
        for number, group in enumerate(same, 1)
    ]


def _first(group: ChannelGroup) -> int:
    member = next(m for m in group.members if m.path == group.name and m.side == "out")
    return member.indices[0][0]


def _refuse(module: nn.Module, skipped: Mapping[str, str]) -> None:
    # That the outputs stay goes without saying, where something else is to be said.
    path, reason = min(skipped.items(), key=lambda item: item[1] == MAKES_OUTPUT, default=("", ""))
    detail = f": {path!r} has to stay, as {reason}" if path else ": it has no layer with filters"
    more = f" (and {len(skipped) - 1} more layers)" if len(skipped) > 1 else ""
    raise UnprunableError(
        f"{type(module).__name__} has no channels that can be pruned{detail}{more}",
        module=path or None,
    )
