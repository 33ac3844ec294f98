"""Counts what a PyTorch network computes and holds, from one call of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .complexity import Complexity, LayerProfile, total

# The operators that a graph without modules (TorchScript, torch.export) has in their place.
_NORMS = {"native_batch_norm", "native_batch_norm_legit_no_training", "cudnn_batch_norm"}
_NORMS |= {"native_layer_norm", "native_group_norm", "fused_rms_norm"}
_ACTIVATIONS = {"relu", "leaky_relu", "prelu_kernel", "elu", "gelu", "silu", "mish", "sigmoid"}
_ACTIVATIONS |= {"tanh", "hardtanh", "hardswish", "hardsigmoid", "softplus"}
_POOLS = {"max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"}
_POOLS |= {"adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d"}


@dataclass
class _Row:
    """What has been counted for a module, or for an operator."""

    name: str
    kind: str
    output_shape: tuple[int, ...] | None = None
    parameters: int = 0
    size_bytes: int = 0
    matrix_macs: int = 0
    elements: int = 0
    order: float = math.inf

    @property
    def is_worth_showing(self) -> bool:
        return bool(self.parameters or self.matrix_macs or self.elements)

    def finished(self) -> LayerProfile:
        return LayerProfile(
            self.name,
            self.kind,
            self.output_shape,
            self.parameters,
            self.size_bytes,
            self.matrix_macs + self.elements,
            self.matrix_macs,
        )


def profile_torch(native: Any, call: Callable[[], object], input_bytes: int) -> Complexity:
    """Count during one call of a network.

    Matrix products count wherever they are called; a function called in the code of a module counts
    for that module. Activations, pools and normalizations count where they are modules, as the
    published profiler does, and everywhere in a graph that has no modules. A module that returns
    its own input (or writes to it) takes no memory for it, nor does a ``Sequential``.

    Args:
        native: an ``nn.Module``, a ``ScriptModule``, the module of an exported program, or any
            other callable.
        call: runs it on the inputs.
        input_bytes: of the inputs.
    """
    import torch

    if not isinstance(native, torch.nn.Module):
        rows, _ = _by_operator(native, call)
        note = "a callable that is no torch.nn.Module does not tell its parameters"
        found = total([row.finished() for row in rows], None, [note])
        return Complexity(macs=found.macs, matrix_macs=found.matrix_macs, notes=found.notes)
    if isinstance(native, torch.jit.ScriptModule | torch.fx.GraphModule):
        rows, notes = _by_operator(native, call)
        found = total([row.finished() for row in rows], None, notes)
        if found.parameters or not found.matrix_macs:
            return found
        note = "its parameters are constants of the graph (it is frozen): not counted"
        return replace(found, parameters=None, size_bytes=None, notes=(*notes, note))
    rows, outputs = _by_module(native, call)
    layers = [row.finished() for row in rows]
    size = sum(layer.size_bytes for layer in layers)
    return total(layers, size + outputs + input_bytes)


def _by_module(module: Any, call: Callable[[], object]) -> tuple[list[_Row], int]:
    """Return a row a module, in the order of their first calls, and the bytes of their outputs."""
    import torch

    stack: list[_Row] = []
    rows: list[_Row] = []
    handles: list[Any] = []
    output_bytes = 0
    entered = 0
    counted: set[Any] = set()

    def hooks(layer: Any, row: _Row) -> tuple[Any, Any]:
        def enter(layer: Any, args: Any) -> None:
            nonlocal entered
            if row.order == math.inf:
                row.order, entered = entered, entered + 1
            stack.append(row)

        def leave(layer: Any, args: Any, kwargs: Any, returned: Any) -> None:
            nonlocal output_bytes
            stack.pop()
            given, made = _tensors((args, kwargs)), _tensors(returned)
            if made:
                row.output_shape = tuple(made[0].shape)
                row.elements += _elements(layer, given, made[0])
            if type(layer).forward is not torch.nn.Sequential.forward:
                held = {tensor.untyped_storage().data_ptr() for tensor in given}
                output_bytes += sum(
                    tensor.numel() * tensor.element_size()
                    for tensor in made
                    if tensor.untyped_storage().data_ptr() not in held
                )

        return enter, leave

    for name, layer in module.named_modules():
        kind = type(layer).__name__
        row = _Row(name or kind, kind)
        rows.append(row)
        for parameter in layer.parameters(recurse=False):
            if parameter not in counted:  # weights may be tied
                counted.add(parameter)
                row.parameters += parameter.numel()
                row.size_bytes += parameter.numel() * parameter.element_size()
        enter, leave = hooks(layer, row)
        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave, with_kwargs=True))

    def observe(packet: Any, args: Any, out: Any, macs: int) -> None:
        row = stack[-1] if stack else rows[0]
        row.matrix_macs += macs

    try:
        _observed(call, observe)
    finally:
        for handle in handles:
            handle.remove()
    shown = [row for row in rows if row.is_worth_showing]
    return sorted(shown, key=lambda row: row.order), output_bytes


def _by_operator(module: Any, call: Callable[[], object]) -> tuple[list[_Row], list[str]]:
    """Return a row an operator that is counted, named after the parameters that it reads."""
    rows: list[_Row] = []
    owners: dict[int, str] = {}
    unread: dict[str, tuple[int, int]] = {}
    for name, parameter in getattr(module, "named_parameters", {}.items)():
        owner = name.rpartition(".")[0] or name
        owners[parameter.data_ptr()] = owner
        numel, size = unread.get(owner, (0, 0))
        bytes_here = parameter.numel() * parameter.element_size()
        unread[owner] = numel + parameter.numel(), size + bytes_here

    def observe(packet: Any, args: Any, out: Any, macs: int) -> None:
        kind = str(packet).removeprefix("aten.").strip("_")
        elements = _operator_elements(kind, args, out)
        if not macs and not elements:
            return
        read = (owners.get(tensor.data_ptr()) for tensor in _tensors(args))
        owner = next((name for name in read if name is not None), None)
        made = _tensors(out)
        row = _Row(owner or f"{kind}_{len(rows)}", kind, order=len(rows))
        row.output_shape = tuple(made[0].shape)
        row.matrix_macs, row.elements = macs, elements
        if owner is not None:
            row.parameters, row.size_bytes = unread.pop(owner, (0, 0))
        rows.append(row)

    _observed(call, observe, everything=True)
    rows += [_Row(name, "parameters", None, *counts) for name, counts in unread.items()]
    notes = ["it has no modules: its memory footprint cannot be told"]
    return rows, notes


def _elements(layer: Any, given: list[Any], made: Any) -> int:
    """Return the operations of a module that are not matrix products; see :mod:`.profile`."""
    from torch import nn

    if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        return 0 if layer.bias is None else int(made.numel())
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    if isinstance(layer, norms):
        return int(made.numel()) * (1 if layer.weight is None else 2)
    homes = {base.__module__ for base in type(layer).__mro__}
    if "torch.nn.modules.pooling" in homes:
        return int(given[0].numel()) if given else 0
    is_activation = "torch.nn.modules.activation" in homes
    if "torch.nn.modules.upsampling" in homes or (
        is_activation and not isinstance(layer, nn.MultiheadAttention)
    ):
        return int(made.numel())
    return 0


def _operator_elements(kind: str, args: Any, out: Any) -> int:
    """Return the same for an operator of a graph that has no modules."""
    made, given = _tensors(out), _tensors(args)
    if not made or not given:
        return 0
    if kind in _NORMS:
        return 2 * int(made[0].numel())
    if kind in _ACTIVATIONS or kind.startswith("upsample_"):
        return int(made[0].numel())
    if kind in _POOLS:
        return int(given[0].numel())
    if kind == "addmm" or (kind == "convolution" and args[2] is not None):
        return int(made[0].numel())
    return 0


def _tensors(value: Any) -> list[Any]:
    import torch

    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _observed(
    call: Callable[[], object],
    observe: Callable[[Any, Any, Any, int], None],
    everything: bool = False,
) -> None:
    """Call a function, and report the operators that PyTorch runs in it.

    Args:
        call: the function.
        observe: gets the operator, its arguments, what it returned, and its multiply-accumulates.
        everything: report operators without any, too.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    formulas = _formulas()

    class Observer(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            packet = func._overloadpacket
            if packet not in formulas and func is not torch.ops.prim.device.default:
                # In inference mode composite operators (linear, matmul) arrive whole.
                with self:
                    out = func.decompose(*args, **kwargs)
                    if out is not NotImplemented:
                        return out
            out = func(*args, **kwargs)
            macs = formulas[packet](args, kwargs, out) if packet in formulas else 0
            if macs or everything:
                observe(packet, args, out, macs)
            return out

    # The fused encoder layer is one operator, of which nothing could be told.
    was_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Observer():
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fused)


_Formula = Callable[[Any, Any, Any], int]


def _formulas() -> dict[Any, _Formula]:
    """Return the multiply-accumulates of each operator, from its arguments and result.

    Those of PyTorch's own counter of operations, which counts each as two, and more.
    """
    import torch
    from torch.utils.flop_counter import flop_registry

    def known(formula: Any) -> _Formula:
        return lambda args, kwargs, out: int(formula(*args, **kwargs, out_val=out)) // 2

    aten = torch.ops.aten
    found = {packet: known(formula) for packet, formula in flop_registry.items()}
    found[aten.mv] = lambda args, kwargs, out: int(args[0].numel())
    found[aten.dot] = lambda args, kwargs, out: int(args[0].numel())
    found[aten.addmv] = lambda args, kwargs, out: int(args[1].numel())
    found[aten._int_mm] = lambda args, kwargs, out: int(args[0].numel() * args[1].shape[1])
    found[aten._scaled_dot_product_flash_attention_for_cpu] = _attention
    found[aten.mkldnn_rnn_layer] = _one_recurrence
    for name in ("_cudnn_rnn", "miopen_rnn"):
        if hasattr(aten, name):
            found[getattr(aten, name)] = _recurrences
    return found


def _attention(args: Any, kwargs: Any, out: Any) -> int:
    """``(batch, heads, length, size)`` each: queries by keys, and weights by values."""
    query, key, value = args[:3]
    return int(query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _one_recurrence(args: Any, kwargs: Any, out: Any) -> int:
    """One direction of one layer: the input, its weights, and those of the hidden state."""
    data, weights, recurrent = args[:3]
    steps = data.numel() // data.shape[-1]
    return int(steps * (weights.numel() + recurrent.numel()))


def _recurrences(args: Any, kwargs: Any, out: Any) -> int:
    """Every layer and direction; the biases are vectors."""
    data, weights = args[:2]
    steps = data.numel() // data.shape[-1]
    return int(steps * sum(tensor.numel() for tensor in weights if tensor.dim() == 2))
