"""Refits what is left after pruning, so that layers compute what they did: no labels, no training.

After He, Zhang and Sun, 2017, "Channel Pruning for Accelerating Very Deep Neural Networks",
arXiv:1707.06168, section 3.1: layer by layer in the order of execution, the weights that are left
are fitted by least squares to the outputs of the network before pruning, on inputs from the network
after it. In place of their lasso, which picks channels, there is a ridge towards the old weights;
and the statistics of BatchNorm are moved as those of its inputs have.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ...frameworks.base import first_line
from ...training.problem import Problem
from .graph import ChannelGroup
from .layers import channels_of, kind_of
from .least_squares import fit_ridge, patches
from .modules import Inputs, copy_module, map_tensors, plain_attention, tensors_in
from .prune import Keep, removed_indices
from .samples import joined_inputs
from .sensitivity import mean_loss

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle

_ROWS = 8192
"""Equations of a layer, at most: positions of its outputs, picked at random."""
_COLUMNS = 4608
"""Weights of one filter, at most, for a layer to be fitted: 512 channels of 3x3."""
_HELD_OUT = 0.25
"""Part of the samples that decides between the fits."""


@dataclass
class _Before:
    """What a layer did before pruning.

    Attributes:
        calls: how often it was called.
        rows: indices of its output's positions, (rows,), of all but its channels.
        fitting: how many of these rows are for fitting; the others are held out.
        outputs: at these positions, (rows, channels).
        statistics: mean and variance of a BatchNorm's input, (channels,) each.
        is_normalised: a BatchNorm takes its output as it is, so that its mean does not matter.
    """

    calls: int = 0
    rows: torch.Tensor | None = None
    fitting: int = 0
    outputs: torch.Tensor | None = None
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None
    is_normalised: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """What was changed.

    Attributes:
        layers: convolutions and linear layers with new weights: the relative squared error of their
            outputs on held-out samples, before and after.
        norms: BatchNorm layers with new statistics.
    """

    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    norms: tuple[str, ...] = ()


def reconstruct(
    pruned: nn.Module,
    original: nn.Module,
    keep: Keep,
    groups: Sequence[ChannelGroup],
    inputs: Inputs,
    *,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Reconstruction:
    """Refit a pruned network in place, in one pass over some samples.

    Two-dimensional convolutions without groups and linear layers are fitted; of other layers only
    BatchNorm changes. What is called several times, shares its weights, or is frozen stays as it
    is, and so does a layer that no fit makes better on the samples that are held out.

    Args:
        pruned: what :func:`.prune.prune` returned; every tensor keeps its shape.
        original: what that was made of; it stays as it is.
        keep: what was kept.
        groups: of the original.
        inputs: arguments of the network, of one batch of real samples.
        seed: of the positions that are picked.
        check: called before each layer; may raise to end it.
    """
    import torch

    layers = _layers(pruned)
    before: dict[str, _Before] = {path: _Before() for path in layers}
    with torch.no_grad(), plain_attention():
        watch = _Watch(before, inputs, seed)
        with _hooked(
            original.get_submodule(path).register_forward_hook(partial(watch, path, kind))
            for path, kind in layers.items()
        ):
            _run(original, inputs)
        refit = _Refit(before, _kept(pruned, keep, groups), check)
        with _hooked(
            pruned.get_submodule(path).register_forward_pre_hook(partial(refit, path, kind))
            for path, kind in layers.items()
        ):
            _run(pruned, inputs)
    return Reconstruction(refit.layers, tuple(refit.norms))


def reconstructed(
    problem: Problem,
    pruned: nn.Module,
    original: nn.Module,
    keep: Keep,
    groups: Sequence[ChannelGroup],
    batches: Sequence[Any],
    fitting: Sequence[Any],
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Return a refitted copy of a pruned network, or the network itself where that is no better.

    Args:
        problem: has the forward pass and the loss.
        pruned: likewise as the next three for :func:`reconstruct`.
        original: what it was made of.
        keep: what was kept.
        groups: of the original.
        batches: that the loss is compared on.
        fitting: that the fit is made on.
        seed: of the positions that are picked.
        check: called before each layer; may raise to end it.
    """
    refitted = copy_module(pruned)
    try:
        inputs = joined_inputs(problem, original, fitting)
        reconstruct(refitted, original, keep, groups, inputs, seed=seed, check=check)
    except (RuntimeError, ValueError, TypeError) as error:
        # Inputs that cannot be put together, or a layer that is called in an unusual way: the
        # network is trained all the same.
        logging.getLogger("ingot").warning(
            "pruned layers are not refitted before they are trained: %s", first_line(error)
        )
        return pruned
    before, after = (mean_loss(problem, network, batches) for network in (pruned, refitted))
    return refitted if after < before else pruned


def _layers(network: nn.Module) -> dict[str, str]:
    """Return the kinds of the layers that can change, by path."""
    from torch import nn

    count = Counter(
        id(tensor) for layer in network.modules() for tensor in layer._parameters.values()
    )
    found: dict[str, str] = {}
    for path, layer in network.named_modules():
        kind = kind_of(layer)
        weight = layer._parameters.get("weight")
        own = [tensor for tensor in layer._parameters.values() if tensor is not None]
        if any(not tensor.requires_grad or count[id(tensor)] > 1 for tensor in own):
            continue
        if kind == "batch_norm" and getattr(layer, "running_mean", None) is not None:
            found[path] = kind
            continue
        is_plain = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
        if is_plain and weight is not None and weight[0].numel() <= _COLUMNS:
            found[path] = str(kind)
    return found


def _kept(pruned: nn.Module, keep: Keep, groups: Sequence[ChannelGroup]) -> dict[str, list[int]]:
    """Return which outputs of each layer are left, of those that have lost some."""
    found: dict[str, list[int]] = {}
    for (path, side), (member, gone) in removed_indices(keep, groups).items():
        if side == "out" and member.kind != "tensor":
            left = channels_of(pruned.get_submodule(path), member.kind, side)
            found[path] = sorted(set(range(left + len(gone))) - gone)
    return found


@contextmanager
def _hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(network: nn.Module, inputs: Inputs) -> None:
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()
    try:
        # A network may change its inputs in place.
        args, kwargs = (map_tensors(part, lambda tensor: tensor.clone()) for part in inputs)
        network(*args, **kwargs)
    finally:
        for layer, mode in modes.items():
            layer.training = mode


class _Watch:
    """A hook that notes what the layers of the original do."""

    def __init__(self, before: Mapping[str, _Before], inputs: Inputs, seed: int) -> None:
        import torch

        tensors = tensors_in([*inputs[0], *inputs[1].values()])
        self._samples = next((tensor.shape[0] for tensor in tensors if tensor.ndim), 1)
        self._generator = torch.Generator().manual_seed(seed)
        self._before = before
        self._last: tuple[str, torch.Tensor, int] | None = None

    def __call__(self, path: str, kind: str, layer: Any, args: Any, output: Any) -> None:
        entry = self._before[path]
        entry.calls += 1
        if entry.calls > 1 or not args or not output.numel():
            return
        if kind == "batch_norm":
            entry.statistics = _statistics(args[0])
            if self._last is not None and _is_as_it_was(args[0], *self._last[1:]):
                self._before[self._last[0]].is_normalised = True
            return
        self._last = path, output, output._version
        self._note(entry, output if kind == "linear" else output.movedim(1, -1))

    def _note(self, entry: _Before, output: torch.Tensor) -> None:
        """Keep what (..., channels) is at random positions; those of the last samples come last."""
        import torch

        values = output.reshape(-1, output.shape[-1])
        of_sample = max(1, len(values) // self._samples)
        held_out = max(1, round(self._samples * _HELD_OUT)) * of_sample
        order = torch.randperm(len(values), generator=self._generator)[:_ROWS]
        fits = order < len(values) - held_out
        entry.rows = torch.cat([order[fits], order[~fits]]).to(values.device)
        entry.fitting = int(fits.sum())
        entry.outputs = values[entry.rows].float()


class _Refit:
    """A hook that fits a layer of the pruned network to the outputs before, when it is called."""

    def __init__(
        self,
        before: Mapping[str, _Before],
        kept: Mapping[str, list[int]],
        check: Callable[[], None],
    ) -> None:
        self.layers: dict[str, tuple[float, float]] = {}
        self.norms: list[str] = []
        self._before = before
        self._kept = kept
        self._check = check

    def __call__(self, path: str, kind: str, layer: Any, args: Any) -> None:
        entry = self._before[path]
        if entry.calls != 1 or not args:
            return
        self._check()
        if entry.statistics is not None:
            self._move(path, layer, entry.statistics, args[0])
        elif entry.rows is not None and entry.outputs is not None:
            self._fit(path, layer, entry, entry.rows, entry.outputs, args[0])
            entry.outputs = None

    def _move(
        self, path: str, layer: Any, before: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor
    ) -> None:
        """Move the statistics of a BatchNorm as far as those of its input have moved."""
        mean, variance = _statistics(x)
        old_mean, old_variance = (self._of_kept(path, values, 0) for values in before)
        scale = (variance + layer.eps) / (old_variance + layer.eps)
        layer.running_mean.add_((mean - old_mean).to(layer.running_mean.dtype))
        layer.running_var.mul_(scale.to(layer.running_var.dtype))
        self.norms.append(path)

    def _fit(
        self,
        path: str,
        layer: Any,
        entry: _Before,
        rows: torch.Tensor,
        outputs: torch.Tensor,
        x: Any,
    ) -> None:
        weight = layer.weight.detach().flatten(1).float()
        if not entry.fitting:
            return
        bias = None if layer.bias is None else layer.bias.detach().float()
        wanted = self._of_kept(path, outputs, 1)
        inputs = patches(layer, x, rows).float()
        fit = fit_ridge(inputs, wanted, weight, bias, entry.fitting, entry.is_normalised)
        if fit is None:
            return
        layer.weight.copy_(fit.weight.view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(fit.bias)
        self.layers[path] = fit.errors

    def _of_kept(self, path: str, values: torch.Tensor, dim: int) -> torch.Tensor:
        import torch

        kept = self._kept.get(path)
        if kept is None:
            return values
        return values.index_select(dim, torch.tensor(kept, device=values.device))


def _is_as_it_was(x: torch.Tensor, output: torch.Tensor, version: int) -> bool:
    """Whether a tensor is the output of another layer, which nothing has changed in place."""
    return x is output and x._version == version


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of each channel, dimension 1."""
    x = x.float().flatten(2) if x.ndim > 2 else x.float().unsqueeze(2)
    mean = x.mean((0, 2))
    # torch.var takes ten times as long.
    return mean, (x - mean[:, None]).square().mean((0, 2))
