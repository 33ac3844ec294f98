"""Folds what multiplies or shifts the channels of a convolution into its weight and bias.

Converters write BatchNorm as a Mul and an Add of constants where they find no better place for it,
tf2onnx behind depthwise and transposed convolutions. Left there, they would stand between integers.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .layers import attribute
from .stored_weights import clone, taken_names

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]


def fold_affine(model: onnx.ModelProto) -> None:
    """Fold, in place, every Mul and Add of a constant that only a convolution's channels tell."""
    graph = model.graph
    constants = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == tensor.FLOAT
    }
    uses = Counter(name for node in graph.node for name in node.input)
    outside = {value.name for value in graph.output}
    for node in graph.node:
        for item in node.attribute:
            for inner in (*item.graphs, *((item.g,) if item.HasField("g") else ())):
                outside |= taken_names(inner)
    producers: dict[str, Any] = {}
    folded = set()
    for node in graph.node:
        layer = next((producers[name] for name in node.input if name in producers), None)
        if node.op_type in ("Mul", "Add") and layer is not None:
            value = layer.output[0]
            other = next((name for name in node.input if name != value), value)
            own = [name for name in layer.input[1:] if name]
            if (
                uses[value] == 1
                and value not in outside
                and other in constants
                and all(name in constants and uses[name] == 1 for name in own)
                and not outside & set(own)
                and _fold(layer, node.op_type, constants[other], constants, graph)
            ):
                layer.output[0] = node.output[0]
                folded.add(node.output[0])
                del producers[value]
                producers[node.output[0]] = layer
                # It may have a bias only now.
                uses.update(name for name in layer.input[2:3] if name not in uses)
                continue
        if node.op_type in ("Conv", "ConvTranspose"):
            producers[node.output[0]] = node
    kept = [
        clone(node)
        for node in graph.node
        if not (node.op_type in ("Mul", "Add") and node.output[0] in folded)
    ]
    del graph.node[:]
    graph.node.extend(kept)
    taken = taken_names(graph)
    for tensor in [item for item in graph.initializer if item.name not in taken]:
        graph.initializer.remove(tensor)


def fold_bias(model: onnx.ModelProto) -> None:
    """Turn, in place, a MatMul of matrices and the Add of a constant vector into one Gemm.

    ONNX Runtime does it to a quantized file, too, where it would no longer find its integer kernel.
    """
    graph = model.graph
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*graph.value_info, *graph.input)
        if value.type.tensor_type.HasField("shape")
    }
    constants = {t.name: list(t.dims) for t in graph.initializer if t.data_type == t.FLOAT}
    products = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "MatMul"
        and len(shapes.get(node.input[0], ())) == 2
        and len(constants.get(node.input[1], ())) == 2
    }
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    folded = set()
    for node in graph.node:
        for value, bias in (node.input, node.input[::-1]) if node.op_type == "Add" else ():
            product = products.get(value)
            if product is None or uses[value] != 1:
                continue
            if constants.get(bias) == constants[product.input[1]][1:]:
                product.op_type = "Gemm"
                product.input.append(bias)
                product.output[0] = node.output[0]
                folded.add(node.output[0])
                break
    kept = [
        clone(node)
        for node in graph.node
        if not (node.op_type == "Add" and node.output[0] in folded)
    ]
    del graph.node[:]
    graph.node.extend(kept)


def _fold(
    layer: Any, kind: str, constant: Any, constants: dict[str, Any], graph: onnx.GraphProto
) -> bool:
    """Change the weight and the bias of a convolution; whether the constant is one a channel."""
    from onnx import numpy_helper

    weight = numpy_helper.to_array(constants[layer.input[1]])
    group = attribute(layer, "group", 1)
    is_transposed = layer.op_type == "ConvTranspose"
    channels = weight.shape[1] * group if is_transposed else weight.shape[0]
    values = _by_channel(numpy_helper.to_array(constant), channels, weight.ndim)
    if values is None:
        return False
    has_bias = len(layer.input) > 2 and bool(layer.input[2])
    if kind == "Mul":
        if is_transposed:
            rows = weight.reshape(group, -1, *weight.shape[1:])
            factors = values.reshape(group, 1, -1, *[1] * (weight.ndim - 2))
            weight = (rows * factors).reshape(weight.shape)
        else:
            weight = weight * values.reshape(-1, *[1] * (weight.ndim - 1))
        name = layer.input[1]
        constants[name].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), name))
    if not has_bias:
        if kind == "Mul":
            return True
        del layer.input[2:]
        name = f"{layer.input[1]}_bias"
        while name in constants:
            name += "_"
        layer.input.append(name)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        constants[name] = graph.initializer[-1]
        return True
    name = layer.input[2]
    bias = numpy_helper.to_array(constants[name])
    bias = bias * values if kind == "Mul" else bias + values
    constants[name].CopyFrom(numpy_helper.from_array(bias.astype(np.float32), name))
    return True


def _by_channel(constant: Array, channels: int, rank: int) -> Array | None:
    """Return a constant as one number a channel, if that is how it is spread over an image."""
    if constant.size == 1 and constant.ndim <= rank:
        return np.full(channels, constant.reshape(()), np.float64)
    if constant.ndim > rank or constant.size != channels:
        return None
    shape = [1] * (rank - constant.ndim) + list(constant.shape)
    return constant.ravel().astype(np.float64) if shape[1] == channels else None
