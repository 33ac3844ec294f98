"""Runs a model once so that torch-pruning can see how its channels depend on each other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import IngotError, ModelError
from ...frameworks.base import first_line, import_framework
from .layers import kind_of
from .modules import Inputs, copy_module, map_tensors, plain_attention, tensors_in
from .splits import mend_splits

if TYPE_CHECKING:
    import torch
    from torch import nn


class UnprunableError(ModelError):
    """A model whose channels cannot be pruned, or not traced.

    Attributes:
        module: path of the module that stopped it; None when it is no single one.
        prunable: names of the groups that can be pruned nevertheless.
    """

    def __init__(
        self,
        message: str,
        *,
        module: str | None = None,
        prunable: Sequence[str] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.module = module
        self.prunable = tuple(prunable)


@dataclass
class Trace:
    """What torch-pruning found.

    Attributes:
        module: the copy that was traced; its modules and parameters are those of the graph.
        graph: its dependency graph.
        names: path of every module and bare parameter, by identity.
        order: when a module was first called, by path.
        inputs: autograd nodes of the model's inputs.
        outputs: autograd nodes of the model's outputs.
        chunks: width of the parts of every split into equal ones, by node of the graph.
    """

    module: nn.Module
    graph: Any
    names: dict[int, str]
    order: dict[str, int]
    inputs: set[Any] = field(default_factory=set)
    outputs: set[Any] = field(default_factory=set)
    chunks: dict[Any, int] = field(default_factory=dict)


def trace(module: nn.Module, inputs: Inputs) -> Trace:
    """Run a copy of the module in eval mode, and build torch-pruning's dependency graph.

    Raises:
        UnprunableError: the model fails on these inputs, or hides from autograd what it does.
        ModelError: it cannot be copied.
        MissingDependencyError: torch-pruning is not installed.
    """
    import_framework("torch_pruning", "compress")
    try:
        return _trace(copy_module(module), inputs, with_buffers=True)
    except UnprunableError:
        # Some code writes to its buffers, which a parameter does not allow.
        return _trace(copy_module(module), inputs, with_buffers=False)


def _trace(module: nn.Module, inputs: Inputs, with_buffers: bool) -> Trace:
    import torch
    import torch_pruning

    module.eval()
    if with_buffers:
        _buffers_to_parameters(module)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    names = {id(layer): path for path, layer in module.named_modules()}
    names |= {id(tensor): path for path, tensor in module.named_parameters()}
    watch = _Watch(module)
    found = Trace(module, torch_pruning.DependencyGraph(), names, watch.order)

    def visible(tensor: torch.Tensor) -> torch.Tensor:
        """Make an input a result of autograd, so that layers tied to it are seen."""
        if not tensor.is_floating_point():
            return tensor
        result = tensor.detach().clone().requires_grad_(True) * 1
        found.inputs.add(result.grad_fn)
        return result

    def forward(model: nn.Module, _: Any) -> list[torch.Tensor]:
        args, kwargs = map_tensors(tuple(inputs[0]), visible), map_tensors(inputs[1], visible)
        with watch:
            returned = list(tensors_in(model(*args, **kwargs)))
        seen = [tensor for tensor in returned if tensor.grad_fn is not None]
        if not seen or watch.hidden is not None:
            raise _hidden(model, watch)
        found.outputs.update(tensor.grad_fn for tensor in seen)
        return seen

    parameters = [(tensor, _channel_dim(tensor)) for tensor in _bare_parameters(module)]
    try:
        with plain_attention(), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            found.graph.build_dependency(
                module,
                example_inputs=[],
                forward_fn=forward,
                unwrapped_parameters=[
                    torch_pruning._helpers.UnwrappedParameters(tensor, dim)
                    for tensor, dim in parameters
                    if dim is not None
                ],
                verbose=False,
            )
    except IngotError:
        raise
    except Exception as error:
        raise _failed(module, watch, error) from error
    found.chunks = mend_splits(found.graph)
    return found


class _Watch:
    """Remembers which modules ran, where the call stopped, and where gradients were lost."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.order: dict[str, int] = {}
        self.stack: list[str] = []
        self.hidden: str | None = None

    def __enter__(self) -> None:
        self.handles = []
        for path, layer in self.module.named_modules():
            self.handles.append(
                layer.register_forward_pre_hook(lambda _, __, path=path: self._enter(path))
            )
            self.handles.append(
                layer.register_forward_hook(
                    lambda layer, _, output, path=path: self._leave(layer, path, output)
                )
            )

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _enter(self, path: str) -> None:
        self.order.setdefault(path, len(self.order))
        self.stack.append(path)

    def _leave(self, layer: nn.Module, path: str, output: Any) -> None:
        self.stack.pop()
        if self.hidden is None and any(True for _ in layer.parameters()):
            floats = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
            if floats and all(tensor.grad_fn is None for tensor in floats):
                self.hidden = path


def _hidden(module: nn.Module, watch: _Watch) -> UnprunableError:
    path = watch.hidden if watch.hidden is not None else ""
    kind = type(module.get_submodule(path)).__name__
    where = f"the module {path!r} ({kind})" if path else kind
    return UnprunableError(
        f"{type(module).__name__} cannot be traced: what {where} returns has no gradient",
        module=path,
        hint="the channels are found through autograd: leave torch.no_grad(), .detach(), .data and"
        " NumPy to the caller",
    )


def _failed(module: nn.Module, watch: _Watch, error: Exception) -> UnprunableError:
    if not watch.stack:
        return UnprunableError(
            f"{type(module).__name__} cannot be traced: torch-pruning: {first_line(error)}"
        )
    path = watch.stack[-1]
    where = f"its module {path!r}" if path else "the model"
    kind = type(module.get_submodule(path)).__name__
    return UnprunableError(
        f"{type(module).__name__} cannot be traced: {where} ({kind}) fails on the example inputs:"
        f" {first_line(error)}",
        module=path,
    )


def _buffers_to_parameters(module: nn.Module) -> None:
    """Make constants visible to autograd: a table of positions has channels, too."""
    from torch import nn

    for layer in module.modules():
        if kind_of(layer) is not None:
            continue
        for name, buffer in list(layer._buffers.items()):
            if (
                buffer is not None
                and buffer.is_floating_point()
                and _channel_dim(buffer) is not None
            ):
                del layer._buffers[name]
                layer.register_parameter(name, nn.Parameter(buffer.detach().clone()))


def _bare_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that belong to no layer of a known kind, each once."""
    import torch_pruning

    seen: set[int] = set()
    ops = torch_pruning.ops
    for layer in module.modules():
        if kind_of(layer) is not None and ops.module2type(layer) != ops.OPTYPE.ELEMENTWISE:
            seen |= {id(parameter) for parameter in layer.parameters()}
    for parameter in module.parameters():
        if id(parameter) not in seen and parameter.is_floating_point():
            seen.add(id(parameter))
            yield parameter


def _channel_dim(tensor: torch.Tensor) -> int | None:
    """Return the dimension that should hold the channels: 1 of images, else the last above 1."""
    if tensor.ndim >= 4 and tensor.shape[1] > 1:
        return 1
    long = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    return long[-1] if long else None
