"""A PyTorch network with the weights of a quantized ONNX file, as floats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .layers import QuantLayer, attribute, quantizable_layers
from .plan import FLOAT, Plan, Precision
from .qat_matching import TOLERANCE, Fit, find, graph_weights
from .weights import dequantize, quantize_weight

if TYPE_CHECKING:
    import onnx
    from torch import nn

    Array = np.ndarray[Any, Any]


def rounded_network(
    network: nn.Module,
    graph: onnx.ModelProto,
    plan: Plan,
    quantized: onnx.ModelProto | None = None,
    *,
    reduce_range: bool = False,
) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy of a network whose weights are rounded as those of a quantized file.

    Every parameter that is the weight of a layer in the plan becomes the integers of the file times
    their scales, without what BatchNorm multiplied its channels by when the file was made. Where
    the file's biases were corrected, the layer's own bias is, or that of its BatchNorm. Activations
    stay float, and nothing is added, so that the copy can be used like the original.

    Args:
        network: what the file was made of; it stays as it is.
        graph: the prepared float ONNX graph of it (see :func:`.prepare.prepare`).
        plan: precisions by layer of the graph.
        quantized: the file. None rounds the parameters themselves, in the same way: where layers
            were equalised, the integers of the file are those of other weights.
        reduce_range: 8 bits are 7; only without ``quantized``.

    Returns:
        the copy, and why layers of the plan stayed float, by name.
    """
    import torch

    from ..pruning.modules import copy_module

    made = copy_module(network)
    parameters = {name: found for name, found in made.named_parameters() if found.dim() > 1}
    # Copies: what was rounded for one layer is looked for by the next one that shares it.
    arrays = {name: found.detach().cpu().numpy().copy() for name, found in parameters.items()}
    layers = [layer for layer in quantizable_layers(graph) if plan.get(layer.name, FLOAT) != FLOAT]
    floats = graph_weights(graph, layers)
    stored, shifts = {}, {}
    if quantized is not None:
        stored, shifts = stored_weights(quantized, layers), bias_shifts(graph, quantized, layers)
    left: dict[str, str] = {}
    shifted: set[str] = set()
    # Of layers that share a parameter, the one with the fewest bits comes last.
    for layer in sorted(layers, key=lambda layer: (-plan[layer.name].weight, layer.index)):
        match = find(layer, floats[layer.weight], arrays)
        if isinstance(match, str):
            left[layer.name] = match
            continue
        name, follows = match
        value = stored.get(layer.name)
        if value is None:
            value = _rounded(floats[layer.weight], layer, plan[layer.name], reduce_range)
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(_unfolded(value, layer, follows, arrays[name])))
            # A bias that several calls share can be corrected for one of them only.
            if layer.name in shifts and name not in shifted:
                shifted.add(name)
                _shift_bias(made, name, follows.factors, shifts[layer.name])
    return made, left


def stored_weights(model: onnx.ModelProto, layers: Iterable[QuantLayer]) -> dict[str, Array]:
    """Return the weights of layers in a quantized graph as float32, by the layer's name.

    Args:
        model: as :func:`.qdq.quantize` writes it.
        layers: of the float graph, whose nodes keep their names.
    """
    values = _Constants(model)
    found = {layer.name: values.weight(layer) for layer in layers}
    return {name: array for name, array in found.items() if array is not None}


def bias_shifts(
    graph: onnx.ModelProto, quantized: onnx.ModelProto, layers: Iterable[QuantLayer]
) -> dict[str, Array]:
    """Return what was added to the biases of layers, (output channels,), by the layer's name."""
    before, after = _Constants(graph), _Constants(quantized)
    found = {}
    for layer in layers:
        new, old = after.bias(layer), before.bias(layer)
        if new is not None and (old is None or old.shape == new.shape):
            found[layer.name] = new - (0 if old is None else old)
    return found


class _Constants:
    """The constants of a graph as float32, behind whatever stores them in other types."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes = {node.name: node for node in model.graph.node}
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def weight(self, layer: QuantLayer) -> Array | None:
        node = self._nodes.get(layer.node)
        return None if node is None else self._value(node.input[1])

    def bias(self, layer: QuantLayer) -> Array | None:
        """Return the bias of a layer, or the vector that is added to what a MatMul returns."""
        node = self._nodes.get(layer.node)
        if node is None:
            return None
        if layer.op_type != "MatMul":
            return self._value(node.input[2]) if len(node.input) > 2 else None
        sums = [item for item in self._consumers.get(node.output[0], ()) if item.op_type == "Add"]
        found = [self._value(name) for item in sums for name in item.input]
        return next((array for array in found if array is not None and array.ndim == 1), None)

    def _value(self, name: str) -> Array | None:
        from onnx import numpy_helper

        if name in self._tensors:
            return np.asarray(numpy_helper.to_array(self._tensors[name])).astype(np.float32)
        node = self._producers.get(name)
        if node is None or node.op_type not in ("Cast", "DequantizeLinear"):
            return None
        found = self._value(node.input[0])
        if found is None or node.op_type == "Cast":
            return found
        scale = self._value(node.input[1])
        if scale is None:
            return None
        shape = [1] * found.ndim
        if scale.ndim:
            shape[attribute(node, "axis", 1)] = -1
        return np.asarray(found * scale.reshape(shape), np.float32)


def _shift_bias(network: nn.Module, weight: str, factors: Array, shift: Array) -> None:
    """Add to the bias of the module that has a weight, or else of the BatchNorm behind it.

    That BatchNorm is the one that multiplies its channels by the factors of the weight.
    """
    import torch

    path, _, attribute_name = weight.rpartition(".")
    bias = getattr(network.get_submodule(path), "bias", None)
    if attribute_name != "weight":
        return
    if isinstance(bias, torch.nn.Parameter):
        if bias.shape == shift.shape and (factors != 0).all():
            bias += torch.from_numpy(shift / factors).to(bias)
        return
    norms = [
        module
        for module in network.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and _has(module, factors)
    ]
    if len(norms) == 1 and norms[0].bias is not None:
        norms[0].bias += torch.from_numpy(shift).to(norms[0].bias)


def _has(norm: Any, factors: Array) -> bool:
    """Whether a BatchNorm multiplies its channels by some factors."""
    if norm.running_var is None or norm.num_features != len(factors):
        return False
    scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    found = scale.detach().cpu().numpy()
    return bool(np.abs(found - factors).max() <= TOLERANCE * np.abs(factors).max())


def _rounded(weight: Array, layer: QuantLayer, precision: Precision, reduce_range: bool) -> Array:
    if precision.is_float:
        return weight.astype(np.float16).astype(np.float32)
    integers = quantize_weight(
        weight,
        precision.weight,
        layer.channel_axis,
        reduce_range=reduce_range and precision.activation == 8,
    )
    return dequantize(integers, layer.channel_axis)


def _unfolded(value: Array, layer: QuantLayer, follows: Fit, parameter: Array) -> Array:
    """Return a weight of the graph in the orientation, and with the factors, of its parameter."""
    shape = [1] * value.ndim
    shape[layer.channel_axis] = -1
    factors = follows.factors.reshape(shape)
    kept = np.moveaxis(parameter, follows.channel_axis, layer.channel_axis)
    # A channel that BatchNorm multiplies by 0 has no integers to speak of.
    weight = np.where(factors != 0, value / np.where(factors != 0, factors, 1), kept)
    moved = np.moveaxis(weight, layer.channel_axis, follows.channel_axis)
    return np.ascontiguousarray(moved, dtype=np.float32)
