"""Folds BatchNorm into the layer before it, along the data flow of one run.

Pairs are found by which tensor goes where, not by how modules are nested or named: a convolution
(of any number of dimensions, grouped, depthwise, transposed) or a Linear whose output goes into
one BatchNorm and nowhere else. The arithmetic is that of Jacob et al., "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018), section 3.2, in float64.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_READS = (
    "__get__",
    "dim",
    "ndimension",
    "size",
    "numel",
    "nelement",
    "__len__",
    "is_floating_point",
)
"""Calls that ask for a shape or a type only; all others count as a use, the writing ones, too."""
_TOLERANCE = 1e-4
"""Permitted change of the outputs, relative to the largest of them: rounding of fp32."""


@dataclass(frozen=True)
class _Call:
    function: str
    tensors: tuple[Any, ...]
    returned: Any
    training: bool


@dataclass(frozen=True)
class _Pair:
    layer: str
    norm: str
    is_transposed: bool


def fold_batch_norm(
    module: nn.Module, run: Callable[[nn.Module], list[torch.Tensor]], label: str
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of a module with BatchNorm folded, and the names of what was folded.

    The copy shares every tensor that folding does not change. When it computes something else, or
    does not run, the module itself is returned and a warning is logged.

    Args:
        module: in eval mode; it is not changed.
        run: calls a module on example inputs and returns its output tensors.
        label: what the user calls the model, for the warning.
    """
    import torch

    with torch.no_grad():
        with _recorder() as recorder:
            before = run(module)
        pairs = list(_pairs(module, recorder.calls))
        if not pairs:
            return module, ()
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        folded: nn.Module = copy.deepcopy(module, shared)
        for pair in pairs:
            _fold(folded, pair)
        problem = _check(before, run, folded)
    if problem is not None:
        logging.getLogger("ingot").warning(
            "%s: BatchNorm is left as it is, because folding it %s", label, problem
        )
        return module, ()
    return folded, tuple(pair.norm for pair in pairs)


def _check(
    before: list[torch.Tensor], run: Callable[[nn.Module], list[torch.Tensor]], folded: nn.Module
) -> str | None:
    try:
        after = run(folded)
    except Exception as error:  # the user's forward reads an attribute of the BatchNorm, say
        return f"breaks the model ({type(error).__name__}: {error})"
    if len(after) != len(before):
        return "changes the number of outputs"
    for one, other in zip(before, after, strict=True):
        if not one.is_floating_point():
            continue
        scale = one.abs().max() if one.numel() else one.new_zeros(())
        if one.numel() and not bool((one - other).abs().max() <= _TOLERANCE * scale):
            change = float((one - other).abs().max())
            return f"changes an output by {change:.2g} (its largest value is {float(scale):.2g})"
    return None


def _recorder() -> Any:
    from torch.overrides import TorchFunctionMode

    class Recorder(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[_Call] = []

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            returned = func(*args, **kwargs)
            name = getattr(func, "__name__", str(func))
            if name not in _READS:
                tensors = tuple(_tensors((*args, *kwargs.values())))
                # The tensors are kept alive, so that no address comes twice.
                training = kwargs.get("training", args[5] if len(args) > 5 else False)
                self.calls.append(_Call(name, tensors, returned, training is True))
            return returned

    return Recorder()


def _tensors(values: Any) -> Iterator[Any]:
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _pairs(module: nn.Module, calls: list[_Call]) -> Iterator[_Pair]:
    from torch import nn

    layers = (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    uses: dict[int, int] = {}
    for call in calls:
        for tensor in call.tensors:
            uses[id(tensor)] = uses.get(id(tensor), 0) + 1
    owners = {id(item.weight): (name, item) for name, item in _plain(module, layers)}
    means = {id(item.running_mean): (name, item) for name, item in _plain(module, norms)}
    made = {id(call.returned): call for call in calls if call.function in (*_LAYERS, *_TRANSPOSED)}
    for call in calls:
        if call.function != "batch_norm" or call.training or len(call.tensors) < 3:
            continue
        layer_call = made.get(id(call.tensors[0]))
        norm = means.get(id(call.tensors[1]))
        if layer_call is None or norm is None or len(layer_call.tensors) < 2:
            continue
        weight = layer_call.tensors[1]
        owner = owners.get(id(weight))
        if owner is None or owner[1].weight is not weight:
            continue
        once = all(uses[id(item)] == 1 for item in (layer_call.returned, weight, call.tensors[1]))
        # A Linear over (batch, length, channels) has its channels last; BatchNorm has them second.
        batched = layer_call.returned.dim() == weight.dim()
        if once and batched:
            yield _Pair(owner[0], norm[0], layer_call.function in _TRANSPOSED)


def _plain(module: nn.Module, kinds: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """Yield modules of exactly these types, without hooks: a subclass may compute anything."""
    for name, item in module.named_modules():
        hooks = item._forward_hooks or item._forward_pre_hooks
        if type(item) in kinds and not hooks and name:
            yield name, item


def _fold(module: nn.Module, pair: _Pair) -> None:
    import torch
    from torch import nn

    layer: Any = module.get_submodule(pair.layer)
    norm: Any = module.get_submodule(pair.norm)
    weight = layer.weight.double()
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    scale = gamma.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.double()
    if pair.is_transposed:
        # (in, out / groups, ...): output channel g * (out / groups) + j belongs to group g.
        groups = layer.groups
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        factors = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
        scaled = (grouped * factors).reshape(weight.shape)
    else:
        scaled = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    shifted = (bias - norm.running_mean.double()) * scale + beta.double()
    layer.weight = nn.Parameter(scaled.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(shifted.to(layer.weight.dtype), requires_grad=False)
    parent, _, name = pair.norm.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity())
