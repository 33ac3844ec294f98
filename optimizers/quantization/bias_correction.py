"""Takes the mean error of rounded weights out of the biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .calibration import Ranges
from .layers import QuantLayer, attribute, quantizable_layers
from .plan import Plan
from .qdq import integer_weights
from .weights import QuantizedWeight, dequantize

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]


def correct_biases(
    model: onnx.ModelProto,
    plan: Plan,
    ranges: Ranges,
    *,
    reduce_range: bool = False,
    weights: Mapping[str, QuantizedWeight] | None = None,
) -> onnx.ModelProto:
    """Return a copy of a prepared model whose biases make up for the rounding of its weights.

    Rounded weights shift the mean of an output channel by their error times the mean of the input.
    It is subtracted from the bias: section 4.2 of Nagel et al. 2019, "Data-free quantization
    through weight equalization and bias correction", arXiv:1906.04721, with the means that were
    seen in calibration. A convolution without a bias gets one; a MatMul is corrected where a
    constant vector is added to what it returns, and nowhere else.

    Args:
        model: prepared.
        plan: what it will be quantized with.
        ranges: with the means of the layers' inputs.
        reduce_range: as it will be quantized.
        weights: integers that will be written as they are, by layer.
    """
    from onnx import numpy_helper

    corrected = type(model)()
    corrected.CopyFrom(model)
    biases = _Biases(corrected)
    integers = integer_weights(model, plan, reduce_range=reduce_range, weights=weights)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in quantizable_layers(model):
        if layer.name not in integers or layer.name not in ranges.means:
            continue
        weight = numpy_helper.to_array(tensors[layer.weight])
        error = dequantize(integers[layer.name], layer.channel_axis) - weight
        biases.subtract(layer, error, ranges.means[layer.name])
    biases.finish()
    return corrected


class _Biases:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._nodes = {node.name: node for node in model.graph.node}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def subtract(self, layer: QuantLayer, error: Array, mean: Array) -> None:
        node = self._nodes[layer.node]
        if layer.op_type == "MatMul":
            self._subtract_from_sum(node, error, mean)
            return
        shift = _shift(layer, node, error, mean)
        if layer.op_type == "Gemm":
            beta = attribute(node, "beta", 1.0)
            if beta == 0 or attribute(node, "transA", 0):
                return
            shift = shift * attribute(node, "alpha", 1.0) / beta
        if len(node.input) < 3 or not node.input[2]:
            del node.input[2:]
            node.input.append(self._add(f"{layer.weight}_bias", -shift))
        elif node.input[2] in self._tensors:
            self._replace(node, 2, shift)

    def _subtract_from_sum(self, node: Any, error: Array, mean: Array) -> None:
        """Correct the vector that is added to what a MatMul returns."""
        consumers = [item for item in self._graph.node if node.output[0] in item.input]
        taken = any(value.name == node.output[0] for value in self._graph.output)
        if error.ndim != 2 or len(consumers) != 1 or consumers[0].op_type != "Add" or taken:
            return
        other = 1 if consumers[0].input[0] == node.output[0] else 0
        tensor = self._tensors.get(consumers[0].input[other])
        if tensor is not None and list(tensor.dims) == [error.shape[1]]:
            self._replace(consumers[0], other, mean @ error)

    def _replace(self, node: Any, place: int, shift: Array) -> None:
        """Give a node a bias of its own, as others may take the one that it has."""
        from onnx import numpy_helper

        name = node.input[place]
        bias = numpy_helper.to_array(self._tensors[name])
        if bias.ndim != 1 or bias.shape != shift.shape:
            return
        node.input[place] = self._add(f"{name}_corrected", bias - shift)

    def _add(self, name: str, values: Array) -> str:
        from onnx import numpy_helper

        count = 0
        fresh = name
        while fresh in self._tensors:
            count += 1
            fresh = f"{name}_{count}"
        tensor = numpy_helper.from_array(values.astype(np.float32), fresh)
        self._graph.initializer.append(tensor)
        self._tensors[fresh] = tensor
        return fresh

    def finish(self) -> None:
        """Drop the biases that nothing takes any more."""
        from .stored_weights import taken_names

        taken = taken_names(self._graph)
        for tensor in [item for item in self._graph.initializer if item.name not in taken]:
            self._graph.initializer.remove(tensor)


def _shift(layer: QuantLayer, node: Any, error: Array, mean: Array) -> Array:
    """Return the shift of the mean of each output channel, away from the borders of the image."""
    if layer.op_type == "Gemm":
        return mean @ (error.T if attribute(node, "transB", 0) else error)
    taps = error.reshape(*error.shape[:2], -1).sum(axis=2, dtype=np.float64)
    groups = mean.reshape(layer.group, -1)
    if layer.op_type == "ConvTranspose":
        # Of its taps, an output sees one in each stretch of the strides.
        strides = np.prod(attribute(node, "strides", [1]))
        by_group = taps.reshape(layer.group, -1, taps.shape[1])
        return np.einsum("gi,gio->go", groups, by_group).ravel() / strides
    by_group = taps.reshape(layer.group, -1, taps.shape[1])
    return np.einsum("gi,goi->go", groups, by_group).ravel()
