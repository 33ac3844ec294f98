"""The check that every pruned network has to pass: it equals the masked one.

The masked network has its full size, and zeros where channels are to go. It does not depend on how
the graph was traced to a layer, so that a wrong trace (torch-pruning takes every operation that it
does not know for an elementwise one) shows as a difference.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import CheckError, IngotError
from ...frameworks.base import first_line
from .graph import ChannelGroup, Member, channel_groups
from .layers import NORMS_ACROSS_CHANNELS, along, channels_of, slots
from .modules import Inputs, copy_module, map_tensors, plain_attention, tensors_in
from .prune import Keep, prune, removed_indices

if TYPE_CHECKING:
    import torch
    from torch import nn

TOLERANCE = 1e-6
"""Largest difference, as a part of the largest output, in double precision."""
_SINGLE_TOLERANCE = 1e-4


def masked(module: nn.Module, keep: Keep, groups: Sequence[ChannelGroup]) -> nn.Module:
    """Return a copy of a module of the same size, in which all channels but some are 0.

    Weights and biases that make the channel, or use it, are 0. Layers that normalise over channels
    take their statistics of the kept ones.

    Raises:
        UsageError: there is no such group or channel.
        ModelError: the module cannot be copied.
    """
    import torch

    removed = removed_indices(keep, groups)
    result = copy_module(module)
    with torch.no_grad():
        for (path, side), (member, gone) in removed.items():
            _mask(result, path, side, member, sorted(gone))
    return result


def check_against_mask(
    original: nn.Module,
    pruned: nn.Module,
    keep: Keep,
    inputs: Inputs,
    *,
    groups: Sequence[ChannelGroup] | None = None,
) -> float:
    """Compare a pruned network with the masked one, both in eval mode and double precision.

    Args:
        original: the network before it was pruned; neither is changed.
        pruned: what :func:`.prune.prune` returned, not trained yet.
        keep: what was kept.
        inputs: positional and keyword arguments; random ones do.
        groups: of the original; None traces it again.

    Returns:
        the largest difference, as a part of the largest output.

    Raises:
        CheckError: they differ; the message names the group.
    """
    groups = channel_groups(original, inputs) if groups is None else groups
    difference, reason = _difference(masked(original, keep, groups), pruned, inputs)
    if reason is None:
        return difference
    culprit, detail = _culprit(original, keep, inputs, groups)
    name = "the groups together" if culprit is None else f"the group {culprit!r}"
    raise CheckError(
        f"pruning {name} of {type(original).__name__} computes something else than setting its"
        f" channels to 0: {detail or reason}",
        hint="the trace of this group is wrong: leave it as it is"
        + ("" if culprit is None else f" (--exclude '{culprit}')"),
    )


def verify_groups(
    module: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs, seed: int = 0
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Prune a random half of every group's channels, and say which groups stand the check.

    Returns:
        the groups that do, and for each other one, by name, why not.

    Raises:
        ModelError: the module cannot be copied.
    """
    random_ = random.Random(seed)
    keep = {
        group.name: sorted(random_.sample(range(group.channels), (group.channels + 1) // 2))
        for group in groups
    }
    if _try(module, keep, inputs, groups) is None:
        return list(groups), {}
    wrong: dict[str, str] = {}
    for group in groups:
        reason = _try(module, {group.name: keep[group.name]}, inputs, groups)
        if reason is not None:
            wrong[group.name] = reason
    # Some groups may be right each by itself only.
    good: list[ChannelGroup] = []
    for group in groups:
        if group.name in wrong:
            continue
        both = {other.name: keep[other.name] for other in (*good, group)}
        reason = _try(module, both, inputs, groups) if good else None
        if reason is None:
            good.append(group)
        else:
            wrong[group.name] = reason
    return good, wrong


def _culprit(
    original: nn.Module, keep: Keep, inputs: Inputs, groups: Sequence[ChannelGroup]
) -> tuple[str | None, str | None]:
    """Return the first group that is wrong by itself, or together with those before it."""
    for name, kept in keep.items():
        reason = _try(original, {name: kept}, inputs, groups)
        if reason is not None:
            return name, reason
    together: dict[str, Sequence[int]] = {}
    for name, kept in keep.items():
        together[name] = kept
        reason = _try(original, together, inputs, groups)
        if reason is not None:
            return name, reason
    return None, None


def _try(
    module: nn.Module, keep: Keep, inputs: Inputs, groups: Sequence[ChannelGroup]
) -> str | None:
    """Prune, and return what is wrong with the result."""
    try:
        pruned, _ = prune(module, keep, groups)
    except IngotError as error:
        return error.message
    return _difference(masked(module, keep, groups), pruned, inputs)[1]


def _difference(expected: nn.Module, found: nn.Module, inputs: Inputs) -> tuple[float, str | None]:
    """Return the relative difference of the outputs, and what is wrong if it is too large."""
    import torch

    tolerance = TOLERANCE
    try:
        reference = _outputs(copy_module(expected).double(), inputs, torch.float64)
    except (RuntimeError, TypeError, ValueError):
        # It insists on its own precision.
        tolerance = _SINGLE_TOLERANCE
        reference = _outputs(expected, inputs, None)
    double = tolerance == TOLERANCE
    model = copy_module(found)
    try:
        dtype = torch.float64 if double else None
        outputs = _outputs(model.double() if double else model, inputs, dtype)
    except Exception as error:  # whatever the user's code raises
        return float("inf"), f"the pruned network fails: {first_line(error)}"
    if len(outputs) != len(reference):
        return float("inf"), f"it returns {len(outputs)} tensors; expected {len(reference)}"
    worst = 0.0
    for one, other in zip(reference, outputs, strict=True):
        if one.shape != other.shape:
            return float("inf"), (
                f"an output has the shape {list(other.shape)}; expected {list(one.shape)}"
            )
        same_holes = torch.equal(torch.isfinite(one), torch.isfinite(other))
        one, other = torch.nan_to_num(one.double()), torch.nan_to_num(other.double())
        scale = max(one.abs().max().item(), 1e-30) if one.numel() else 1.0
        distance = (one - other).abs().max().item() / scale if one.numel() else 0.0
        worst = max(worst, distance if same_holes else float("inf"))
    if worst <= tolerance:
        return worst, None
    return worst, f"the outputs differ by {worst:.2g} of the largest"


def _outputs(module: nn.Module, inputs: Inputs, dtype: torch.dtype | None) -> list[torch.Tensor]:
    import torch

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().clone()
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    args, kwargs = map_tensors(tuple(inputs[0]), cast), map_tensors(inputs[1], cast)
    with torch.no_grad(), plain_attention(), _evaluating(module):
        found = list(tensors_in(module(*args, **kwargs)))
    return [tensor for tensor in found if tensor.is_floating_point()] or found


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training: Mapping[nn.Module, bool] = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for layer, mode in training.items():
            layer.training = mode


def _mask(root: nn.Module, path: str, side: str, member: Member, gone: list[int]) -> None:
    if member.kind == "tensor":
        prefix, _, name = path.rpartition(".")
        along(name, getattr(root.get_submodule(prefix), name), member.dim).zero(gone)
        return
    layer: Any = root.get_submodule(path)
    for slot in slots(layer, member.kind, side):
        if slot.name != "running_var":
            slot.zero(gone)
    if member.kind in NORMS_ACROSS_CHANNELS:
        width = channels_of(layer, member.kind, side)
        kept = sorted(set(range(width)) - set(gone))
        # A hook, for it also keeps nn.TransformerEncoderLayer from a kernel that skips the layer.
        layer.register_forward_hook(partial(_normalise, member.kind, kept))


def _normalise(
    kind: str, kept: list[int], layer: Any, args: tuple[torch.Tensor, ...], _: torch.Tensor
) -> torch.Tensor:
    """Normalise the kept channels among themselves; the others are 0."""
    import torch
    from torch.nn import functional

    (x,) = args
    dim = 1 if kind == "group_norm" else -1
    index = torch.tensor(kept, device=x.device)
    part = x.index_select(dim, index)
    weight = None if layer.weight is None else layer.weight[index]
    bias = None if getattr(layer, "bias", None) is None else layer.bias[index]
    if kind == "group_norm":
        part = functional.group_norm(part, layer.num_groups, weight, bias, layer.eps)
    elif kind == "rms_norm":
        part = functional.rms_norm(part, (len(kept),), weight, layer.eps)
    else:
        part = functional.layer_norm(part, (len(kept),), weight, bias, layer.eps)
    return torch.zeros_like(x).index_copy(dim, index, part)
