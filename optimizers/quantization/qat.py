"""Quantization-aware fine-tuning of a PyTorch network: it learns with its weights rounded.

A float network gets parametrizations in place, is trained by whatever trains networks (with
:func:`ingot.optimizers.pruning.recovery.recover`, from the reference as teacher), and becomes a
plain network again whose weights lie exactly on their grids. BatchNorm stays unfolded meanwhile:
:func:`folded_weights` carries the integers into the graph that is exported then.

    with quantization_aware(network, plan, graph) as prepared:
        recover(problem, network, teacher, prepared.options(options), budget, folder)
        network, trained = prepared.finish()
    weights = folded_weights(exported_and_prepared(network), trained)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ...training.options import TrainerOptions
from .layers import quantizable_layers
from .plan import Plan, Precision
from .qat_matching import TrainedWeight, find, folded_weights, graph_weights
from .qat_steps import largest_integer, learned_steps, round_inputs

if TYPE_CHECKING:
    import onnx
    from torch import nn

__all__ = ["QuantizationAware", "TrainedWeight", "folded_weights", "quantization_aware"]


@dataclass
class _Rounded:
    """A parameter that is rounded.

    Attributes:
        name: its name in the network, before it was rounded.
        original: itself.
        holders: the modules that have it, and the name that each has for it; several where weights
            are tied.
        steps: what rounds it, as :func:`.qat_steps.learned_steps` makes it.
        uses: precisions of the layers of the graph, which it is the weight of.
    """

    name: str
    original: nn.Parameter
    holders: list[tuple[nn.Module, str]]
    steps: Any
    uses: Mapping[str, Precision]


class QuantizationAware:
    """A network that trains with rounded weights; see :func:`quantization_aware`.

    At the end of a ``with`` statement, a network that was not finished gets its float weights back.

    Attributes:
        network: the one that was prepared.
        layers: what trains in integers, by name: those of the plan that can.
        left: what stays float of those that the plan gives integers, and why.
    """

    def __init__(self, network: nn.Module, left: Mapping[str, str]) -> None:
        self.network = network
        self.left = dict(left)
        self._rounded: list[_Rounded] = []
        self._hooks: list[Any] = []

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(name for item in self._rounded for name in item.uses)

    def options(self, options: TrainerOptions) -> TrainerOptions:
        """Return options whose patterns of parameters' names find the prepared parameters, too.

        ``training.trainable: [head.weight]`` has to find what is called
        ``head.parametrizations.weight.original`` now, and its steps.
        """
        now = [name for name, _ in self.network.named_parameters()]
        renamed = {}
        for path, module in self.network.named_modules():
            for name in getattr(module, "parametrizations", ()):
                start = f"{path}." if path else ""
                renamed[f"{start}{name}"] = f"{start}parametrizations.{name}."

        def found(patterns: tuple[str, ...]) -> tuple[str, ...]:
            names: list[str] = []
            for pattern in patterns:
                moved = [new for old, new in renamed.items() if pattern in old]
                if not moved or any(pattern in name for name in now):
                    names.append(pattern)
                names += [name for name in moved if pattern not in name]
            return tuple(dict.fromkeys(names))

        return replace(
            options,
            trainable=found(options.trainable),
            weight_decay_skip=found(options.weight_decay_skip),
        )

    def finish(self) -> tuple[nn.Module, dict[str, TrainedWeight]]:
        """Make the network plain again, with the weights that it was trained for.

        Returns:
            the network, whose classes are those that it had and whose weights are integers times
            scales, bit for bit; and these by name of layer.

        Raises:
            ModelError: a weight or a step is NaN or infinite.
        """
        import torch

        trained: dict[str, TrainedWeight] = {}
        rounded = []
        for item in self._rounded:
            steps = item.steps
            if not bool(item.original.isfinite().all() and steps.step.isfinite().all()):
                raise ModelError(
                    f"layer {next(iter(item.uses))!r}: its weight holds NaN or infinity after"
                    " training"
                )
            values, scale = steps.integers(item.original)
            integers, scales = values.contiguous().cpu().numpy(), scale.cpu().numpy()
            for layer, precision in item.uses.items():
                trained[layer] = TrainedWeight(
                    integers, scales, precision.weight, item.name, steps.channel_axis
                )
            with torch.no_grad():
                rounded.append((item.original, steps(item.original)))
        self.remove()
        with torch.no_grad():
            for original, value in rounded:
                original.copy_(value)
        return self.network, trained

    def remove(self) -> None:
        """Make the network plain again, with the float weights that it has now."""
        from torch.nn.utils import parametrize

        for hook in self._hooks:
            hook.remove()
        for item in self._rounded:
            for module, name in item.holders:
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        self._hooks, self._rounded = [], []

    def _round(
        self,
        name: str,
        original: nn.Parameter,
        holders: list[tuple[nn.Module, str]],
        uses: Mapping[str, Precision],
        channel_axis: int,
        reduce_range: bool,
    ) -> None:
        """Round a parameter wherever it is held.

        Args:
            name: of the parameter.
            original: the parameter.
            holders: modules, and its name in each.
            uses: layers of the graph, and their precisions.
            channel_axis: of its output channels.
            reduce_range: 8 bits become 7.
        """
        from torch.nn.utils import parametrize

        bits = min(precision.weight for precision in uses.values())
        steps = learned_steps(original, largest_integer(bits, reduce_range), channel_axis)
        for module, attribute in holders:
            parametrize.register_parametrization(module, attribute, steps)
            if attribute == "weight" and any(item.activation == 8 for item in uses.values()):
                self._hooks.append(module.register_forward_pre_hook(round_inputs))
        self._rounded.append(_Rounded(name, original, holders, steps, uses))

    def __enter__(self) -> QuantizationAware:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def quantization_aware(
    network: nn.Module, plan: Plan, graph: onnx.ModelProto, *, reduce_range: bool = False
) -> QuantizationAware:
    """Let a network compute with rounded weights, and learn them, in place.

    The weights of the plan with 2, 4 or 8 bits become integers times learned steps, one an output
    channel (Esser et al., 2020, arXiv:1902.08153; see :mod:`.qat_steps`), whatever the class that
    holds them; a parameter that several modules hold is the same integers in all of them. Where the
    plan says so, what goes into the module of a layer is rounded to uint8, too. Nothing else
    changes: the parameters are those of before, under the names that
    ``torch.nn.utils.parametrize`` gives them.

    Args:
        network: with BatchNorm as it is.
        plan: by name of the layers of ``graph``; where two of them share a parameter, it gets the
            fewer bits.
        graph: the prepared ONNX graph of the network as it is now: it says which parameter a layer
            has, and where its output channels lie.
        reduce_range: weights of 7 bits in place of 8, for processors whose 8-bit products saturate.

    Returns:
        a handle; its ``left`` says which layers of the plan stay float, and why.

    Raises:
        ModelError: the plan names a layer that the graph does not have.
    """
    layers = {layer.name: layer for layer in quantizable_layers(graph)}
    for name in plan:
        if name not in layers:
            raise ModelError(f"the plan names the layer {name!r}, which the ONNX graph lacks")
    weights = graph_weights(graph, layers.values())
    holders = _holders(network)
    parameters = {name: found for name, found in network.named_parameters() if found in holders}
    arrays = {name: found.detach().cpu().numpy() for name, found in parameters.items()}
    uses: dict[str, dict[str, Precision]] = {}
    axes: dict[str, int] = {}
    left: dict[str, str] = {}
    for name in sorted(plan, key=lambda name: layers[name].index):
        if plan[name].is_float:
            continue
        match = find(layers[name], weights[layers[name].weight], arrays)
        if isinstance(match, str):
            left[name] = match
            continue
        parameter, follows = match
        axes[parameter] = follows.channel_axis
        uses.setdefault(parameter, {})[name] = plan[name]
    prepared = QuantizationAware(network, left)
    for parameter, layers_of in uses.items():
        original = parameters[parameter]
        prepared._round(
            parameter, original, holders[original], layers_of, axes[parameter], reduce_range
        )
    return prepared


def _holders(network: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """Return what can be rounded, with the modules that have it and its name in each."""
    import torch
    from torch.nn.utils.parametrize import ParametrizationList

    found: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        # A weight that is computed already is one of the user's own.
        if isinstance(module, torch.jit.ScriptModule | ParametrizationList):
            continue
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.dim() > 1 and parameter.dtype == torch.float32:
                found.setdefault(parameter, []).append((module, name))
    return found
