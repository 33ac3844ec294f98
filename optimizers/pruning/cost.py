"""What a network costs with fewer channels, told from its groups before anything is pruned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .graph import ChannelGroup
from .layers import channels_of, slots

if TYPE_CHECKING:
    from torch import nn

Kept = Mapping[str, int]
"""How many channels stay, by the name of their group."""


@dataclass
class _Part:
    """A tensor, or the work of a layer: a product of the widths of the sides that it has."""

    amount: float
    sides: tuple[tuple[str, str], ...]


@dataclass
class CostModel:
    """Predicts parameters and multiply-accumulates.

    A layer's weights shrink with both of its widths, its work likewise; what has no channels of a
    group stays as it is.

    Args:
        network: as it is now.
        groups: its groups.
        macs: multiply-accumulates by the path of each layer.
    """

    network: nn.Module
    groups: Sequence[ChannelGroup]
    macs: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._channels = {group.name: group.channels for group in self.groups}
        self._share: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        sizes: list[_Part] = []
        work: list[_Part] = []
        owned: set[int] = set()
        kinds: dict[str, str] = {}
        sides: dict[str, set[str]] = defaultdict(set)
        for group in self.groups:
            for member in group.members:
                if member.kind == "tensor":
                    continue
                key = (member.path, member.side)
                kinds[member.path] = member.kind
                sides[member.path].add(member.side)
                layer = self.network.get_submodule(member.path)
                width = channels_of(layer, member.kind, member.side)
                indices = len(member.of(range(group.channels)))
                self._share[key][group.name] = indices / group.channels / width
        for path, kind in kinds.items():
            layer = self.network.get_submodule(path)
            tensors: dict[int, tuple[float, set[tuple[str, str]]]] = {}
            for side in sorted(sides[path]):
                for slot in slots(layer, kind, side):
                    amount, found = tensors.setdefault(
                        id(slot.tensor), (float(slot.tensor.numel()), set())
                    )
                    found.add((path, side))
                    if not slot.name.startswith("running_"):
                        owned.add(id(slot.tensor))
            is_buffer = {id(tensor) for tensor in layer.buffers()}
            for identity, (amount, found) in tensors.items():
                if identity not in is_buffer:
                    sizes.append(_Part(amount, tuple(sorted(found))))
            if self.macs.get(path):
                wanted = [(path, side) for side in sorted(sides[path])]
                if kind == "depthwise":
                    wanted = wanted[:1]
                work.append(_Part(float(self.macs[path]), tuple(wanted)))
        rest = sum(
            tensor.numel() for tensor in self.network.parameters() if id(tensor) not in owned
        )
        self._sizes = [*sizes, _Part(float(rest), ())]
        other = sum(self.macs.values()) - sum(part.amount for part in work)
        self._work = [*work, _Part(float(other), ())]
        self._sizes_of, self._work_of = self._touched(sizes), self._touched(work)

    def parameters(self, kept: Kept) -> float:
        """Return how many parameters are left."""
        return sum(self._amount(part, kept) for part in self._sizes)

    def macs_left(self, kept: Kept) -> float:
        """Return how many multiply-accumulates are left."""
        return sum(self._amount(part, kept) for part in self._work)

    def saved_parameters(self, kept: Kept, name: str, width: int) -> float:
        """Return how many parameters go when one group has another width."""
        return self._saved(self._sizes_of, kept, name, width)

    def saved_macs(self, kept: Kept, name: str, width: int) -> float:
        """Return how many multiply-accumulates go when one group has another width."""
        return self._saved(self._work_of, kept, name, width)

    def _saved(
        self, parts: Mapping[str, Sequence[_Part]], kept: Kept, name: str, width: int
    ) -> float:
        after = {**kept, name: width}
        return sum(
            self._amount(part, kept) - self._amount(part, after) for part in parts.get(name, ())
        )

    def _touched(self, parts: Sequence[_Part]) -> dict[str, list[_Part]]:
        """Return the parts that each group changes."""
        found: dict[str, list[_Part]] = defaultdict(list)
        for part in parts:
            for name in {name for side in part.sides for name in self._share[side]}:
                found[name].append(part)
        return found

    def _amount(self, part: _Part, kept: Kept) -> float:
        amount = part.amount
        for side in part.sides:
            gone = sum(
                share * (self._channels[name] - kept.get(name, self._channels[name]))
                for name, share in self._share[side].items()
            )
            amount *= max(0.0, 1.0 - gone)
        return amount
