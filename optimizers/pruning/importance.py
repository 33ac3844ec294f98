"""How much each channel of a group seems to matter, before anything is measured.

Scores of one group have the mean 1. They rank the channels of a group; how much a group matters
beside another one is for measured sensitivities to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ...errors import UsageError
from .graph import ChannelGroup, Member
from .layers import WEIGHT_KINDS, Slot, along, slots

if TYPE_CHECKING:
    import torch
    from torch import nn

Scores = dict[str, "torch.Tensor"]
"""Float32 ``(channels,)`` on the CPU, by group; the higher, the more important."""


def magnitude(module: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
    """L2 norm of all weights that a channel has: the filters that make it, and those that use it.

    After Li et al., 2017, arXiv:1608.08710 (who take L1 of single filters), over all layers of a
    group, as DepGraph does (Fang et al., 2023, arXiv:2301.12900, section 3.3).
    """
    found: Scores = {}
    for group in groups:
        total = _zeros(group)
        for member, slot in _slots(module, group):
            if member.kind in WEIGHT_KINDS and slot.name.endswith("weight"):
                _add(total, member, slot.by_channel().float().square().sum(1))
        found[group.name] = _normalised(total.sqrt())
    return found


def batch_norm_scale(module: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
    """Mean size of the BatchNorm scales of a channel (Liu et al., 2017, arXiv:1708.06519).

    Groups without BatchNorm that has scales are left out.
    """
    found: Scores = {}
    for group in groups:
        total, any_scale = _zeros(group), False
        for member, slot in _slots(module, group):
            if member.kind == "batch_norm" and slot.name == "weight":
                any_scale = True
                _add(total, member, slot.by_channel().float().abs().sum(1))
        if any_scale:
            found[group.name] = _normalised(total)
    return found


def taylor(module: nn.Module, groups: Sequence[ChannelGroup]) -> Scores:
    """Squared first-order change of the loss when a channel is set to 0.

    Molchanov et al., 2019, arXiv:1906.10771, equation 8: (sum of gradient times value)**2 of each
    layer that makes the channel, summed over the layers. The gradients are those that the caller's
    ``loss.backward()`` left in ``parameter.grad``.

    Raises:
        UsageError: some layer has no gradient.
    """

    def change(slot: Slot) -> torch.Tensor:
        gradient = slot.tensor.grad
        if gradient is None:
            raise UsageError(
                f"the parameter {slot.name!r} has no gradient; expected one of a loss",
                hint="call loss.backward() before, with requires_grad on every parameter",
            )
        return (slot.by_channel() * slot.by_channel(gradient)).float().sum(1)

    found: Scores = {}
    for group in groups:
        total = _zeros(group)
        for member in group.members:
            if member.side != "out":
                continue
            part = _zeros(group)
            for slot in _member_slots(module, member):
                if not slot.name.endswith(("running_mean", "running_var")):
                    _add(part, member, _of_parameter(slot, change))
            total += part.square()
        found[group.name] = _normalised(total)
    return found


def _of_parameter(slot: Slot, change: Callable[[Slot], torch.Tensor]) -> torch.Tensor:
    import torch

    if not isinstance(slot.tensor, torch.nn.Parameter):  # a constant table of positions
        return torch.zeros(slot.by_channel().shape[0])
    return change(slot)


def _slots(module: nn.Module, group: ChannelGroup) -> Iterator[tuple[Member, Slot]]:
    for member in group.members:
        for slot in _member_slots(module, member):
            yield member, slot


def _member_slots(module: nn.Module, member: Member) -> Iterator[Slot]:
    if member.kind != "tensor":
        yield from slots(module.get_submodule(member.path), member.kind, member.side)
        return
    owner, _, name = member.path.rpartition(".")
    yield along(member.path, getattr(module.get_submodule(owner), name), member.dim)


def _zeros(group: ChannelGroup) -> torch.Tensor:
    import torch

    return torch.zeros(group.channels)


def _add(total: torch.Tensor, member: Member, values: torch.Tensor) -> None:
    """Add what single indices of a layer have to the channels that they belong to."""
    values = values.detach().cpu()
    for channel, indices in enumerate(member.indices):
        total[channel] += values[list(indices)].sum()


def _normalised(scores: torch.Tensor) -> torch.Tensor:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
