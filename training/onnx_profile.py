"""Counts what an ONNX file computes and holds, from its graph and the shapes of its tensors."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .profile import Complexity, LayerProfile, input_bytes, total

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_SMALL = 1024
"""Tensors of up to as many elements are read: shapes, axes, repeats."""
_VIEWS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Constant", "Shape"}
_VIEWS |= {"DequantizeLinear"}  # a runtime fuses it into the layer that follows
_PASSES_WEIGHTS = {"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity", "QuantizeLinear"}
_PASSES_WEIGHTS |= {"Unsqueeze", "Squeeze"}
_NORMS = {"BatchNormalization", "InstanceNormalization", "LayerNormalization"}
_NORMS |= {"GroupNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
_ACTIVATIONS = {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Clip", "Gelu", "HardSigmoid"}
_ACTIVATIONS |= {"HardSwish", "Sigmoid", "Tanh", "Mish", "Softplus", "ThresholdedRelu", "Swish"}
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"}
_RECURRENT = ("LSTM", "GRU", "RNN")
_FOREIGN = {"FusedMatMul", "MatMulNBits", "QuantizeLinear"}
_NAME_SCOPES = "pkg.torch.onnx.name_scopes"


class _UnknownShapeError(Exception):
    """Shape inference does not tell the shape of a tensor that is needed."""


@dataclass
class _Graph:
    """A graph, and what is known of its tensors."""

    model: Any
    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        if name not in self.shapes:
            raise _UnknownShapeError(name)
        return self.shapes[name]


def profile_onnx(path: Path, feeds: Mapping[str, Array]) -> Complexity:
    """Count the operations of a file for inputs of these shapes.

    Parameters are the tensors that the file holds, but for scalars, shapes and other integers of 64
    bits, and scales and zero points. Shapes come from ONNX's own shape inference; where it stops,
    from a run.

    Args:
        path: the file.
        feeds: inputs by name.
    """
    graph = _read(path, feeds)
    notes = []
    is_counted, held = True, _output_bytes(graph)
    if held is None:
        from ..frameworks.layers import onnx_layers

        for layer in onnx_layers(path, feeds):
            graph.shapes.setdefault(layer.scopes[-1], layer.array.shape)
        held = _output_bytes(graph)
    try:
        counted = _count(graph)
    except _UnknownShapeError as error:
        notes.append(f"no operations are counted: the shape of {str(error)!r} cannot be told")
        counted, is_counted = {}, False
    if any(it.op_type in ("If", "Loop", "Scan") for it in graph.model.graph.node):
        notes.append("what is inside of If, Loop and Scan is not counted")
    foreign = {it.op_type for it in graph.model.graph.node if not _is_known(it)}
    if foreign:
        notes.append(f"operators that are not ONNX's are not counted: {', '.join(sorted(foreign))}")
    layers = _layers(graph, counted)
    size = sum(layer.size_bytes for layer in layers)
    memory = None if held is None else size + held + input_bytes(feeds)
    found = total(layers, memory, notes)
    if is_counted:
        return found
    return Complexity(found.parameters, found.size_bytes, layers=found.layers, notes=found.notes)


def _read(path: Path, feeds: Mapping[str, Array]) -> _Graph:
    """Read a file without its weights, and infer the shapes of its tensors."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    model = onnx.load(str(path), load_external_data=False)
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    for tensor in model.graph.initializer:
        if uses_external_data(tensor) and math.prod(tensor.dims) <= _SMALL:
            load_external_data_for_tensor(tensor, str(path.parent))
        elif math.prod(tensor.dims) > _SMALL:
            # What shape inference would copy, and what may not exceed 2 GiB.
            for name in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(name)
    for value in model.graph.input:
        if value.name in feeds:
            dims = value.type.tensor_type.shape
            dims.ClearField("dim")
            for size in feeds[value.name].shape:
                dims.dim.add().dim_value = size
    # What was said for other sizes would be believed.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = _Graph(model)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    for value in values:
        kind = value.type.tensor_type
        graph.types[value.name] = kind.elem_type
        dims = kind.shape.dim if kind.HasField("shape") else None
        if dims is not None and all(dim.HasField("dim_value") for dim in dims):
            graph.shapes[value.name] = tuple(dim.dim_value for dim in dims)
    for tensor in model.graph.initializer:
        graph.shapes[tensor.name] = tuple(tensor.dims)
        graph.types[tensor.name] = tensor.data_type
    return graph


def _count(graph: _Graph) -> dict[int, tuple[int, int]]:
    """Return multiply-accumulates and other operations of each node that has any, by position."""
    counted = {}
    for index, node in enumerate(graph.model.graph.node):
        formula = _FORMULAS.get(node.op_type) if _is_known(node) else None
        macs = formula(node, graph) if formula is not None else 0
        elements = _elements(node, graph)
        if macs or elements:
            counted[index] = (macs, elements)
    return counted


def _elements(node: Any, graph: _Graph) -> int:
    """Return the operations that are not matrix products; see :mod:`.profile`."""
    kind = node.op_type
    if kind in _NORMS:
        return 2 * math.prod(graph.shape(node.output[0]))
    if kind in _ACTIVATIONS or kind in ("Resize", "Upsample"):
        return math.prod(graph.shape(node.output[0]))
    if kind in _POOLS:
        return math.prod(graph.shape(node.input[0]))
    bias = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "QLinearConv": 8}.get(kind)
    if bias is not None and len(node.input) > bias and node.input[bias]:
        return math.prod(graph.shape(node.output[0]))
    return 0


def _convolution(weights: int) -> Callable[[Any, _Graph], int]:
    def count(node: Any, graph: _Graph) -> int:
        kernel, made = graph.shape(node.input[weights]), graph.shape(node.output[0])
        return math.prod(made) * math.prod(kernel[1:])

    return count


def _transposed(node: Any, graph: _Graph) -> int:
    kernel, given = graph.shape(node.input[1]), graph.shape(node.input[0])
    return math.prod(given) * math.prod(kernel[1:])


def _gemm(node: Any, graph: _Graph) -> int:
    first = graph.shape(node.input[0])
    return math.prod(graph.shape(node.output[0])) * first[0 if _integer(node, "transA") else 1]


def _matmul(node: Any, graph: _Graph) -> int:
    return math.prod(graph.shape(node.output[0])) * graph.shape(node.input[0])[-1]


def _packed_matmul(node: Any, graph: _Graph) -> int:
    """MatMulNBits: the packed weights do not tell their shape, an attribute does."""
    return math.prod(graph.shape(node.output[0])) * _integer(node, "K")


def _recurrence(node: Any, graph: _Graph) -> int:
    """X [length, batch, size], W [directions, gates x hidden, size], R [..., hidden]."""
    length, batch = graph.shape(node.input[0])[:2]
    weights = math.prod(graph.shape(node.input[1])) + math.prod(graph.shape(node.input[2]))
    return length * batch * weights


def _einsum(node: Any, graph: _Graph) -> int:
    """Every index runs through its size once; of two operands."""
    equation = next(it.s.decode() for it in node.attribute if it.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        return 0
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes |= dict(zip(term, graph.shape(name), strict=True))
    return math.prod(sizes.values())


def _attention(node: Any, graph: _Graph) -> int:
    """Q, K and V: (batch, heads, length, size), or (batch, length, heads x size)."""
    query, key, value = (graph.shape(name) for name in node.input[:3])
    if len(query) == 3:
        values = _integer(node, "q_num_heads") * value[2] // _integer(node, "kv_num_heads")
        return query[0] * query[1] * key[1] * (query[2] + values)
    return math.prod(query[:3]) * key[2] * (query[3] + value[3])


_FORMULAS: Mapping[str, Callable[[Any, _Graph], int]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulNBits": _packed_matmul,
    "Einsum": _einsum,
    "Attention": _attention,
    **dict.fromkeys(_RECURRENT, _recurrence),
}


def _is_known(node: Any) -> bool:
    """Whether it is an operator of ONNX, or one of ONNX Runtime's that is known here."""
    if node.domain in ("", "ai.onnx"):
        return True
    return node.op_type in _FOREIGN or node.op_type in _ACTIVATIONS | _NORMS | _VIEWS


def _integer(node: Any, name: str) -> int:
    return next((int(it.i) for it in node.attribute if it.name == name), 0)


def _layers(graph: _Graph, counted: Mapping[int, tuple[int, int]]) -> list[LayerProfile]:
    """Return a layer for each node that computes or holds something."""
    nodes = graph.model.graph.node
    held = _held(graph)
    layers = []
    for index, node in enumerate(nodes):
        macs, elements = counted.get(index, (0, 0))
        parameters, size = held.pop(index, (0, 0))
        if not (macs or elements or parameters):
            continue
        name, shape = _name(node), graph.shapes.get(node.output[0])
        layers.append(
            LayerProfile(name, node.op_type, shape, parameters, size, macs + elements, macs)
        )
    return layers


def _held(graph: _Graph) -> dict[int, tuple[int, int]]:
    """Return number and bytes of the parameters of each node, by position.

    Those that pass through nodes that only unpack or turn them belong to the node that uses them.
    """
    nodes = graph.model.graph.node
    users: dict[str, int] = {}
    scales = set()
    tensors = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    for index, node in enumerate(nodes):
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            scales.update(node.input[1:])
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
        for name in node.input:
            users.setdefault(name, index)
    held: dict[int, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        index = users.get(name, -1)
        if index < 0 or name in scales or not tensor.dims or not _is_weight(tensor):
            continue
        while nodes[index].op_type in _PASSES_WEIGHTS and nodes[index].output[0] in users:
            index = users[nodes[index].output[0]]
        count = math.prod(tensor.dims)
        parameters, size = held.get(index, (0, 0))
        held[index] = parameters + count, size + math.ceil(count * _width(tensor.data_type))
    return held


def _is_weight(tensor: Any) -> bool:
    """Whether a tensor may be learned: it is no shape, index, condition or text."""
    import onnx

    kinds = onnx.TensorProto
    return tensor.data_type not in (kinds.INT64, kinds.UINT64, kinds.BOOL, kinds.STRING)


def _width(data_type: int) -> float:
    """Return the bytes of an element; two of four bits share one."""
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 0.5
    if name in ("INT2", "UINT2"):
        return 0.25
    return float(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _output_bytes(graph: _Graph) -> int | None:
    """Return the bytes of what all nodes return, but views; None where a shape is not known."""
    found = 0
    for node in graph.model.graph.node:
        if node.op_type in _VIEWS:
            continue
        for name in filter(None, node.output):
            kind = graph.types.get(name, 1) or 1
            if name not in graph.shapes:
                return None
            found += math.ceil(math.prod(graph.shapes[name]) * _width(kind))
    return found


def _name(node: Any) -> str:
    """Return the module that a node was, where ``torch.onnx`` says so; else its own name."""
    for entry in node.metadata_props:
        if entry.key == _NAME_SCOPES:
            scopes = [str(scope) for scope in ast.literal_eval(entry.value)[:-1] if scope]
            if scopes:
                return max(scopes, key=len)
    return str(node.name or node.output[0])
