"""Counts what an ONNX file computes and holds, from its graph and the shapes of its tensors."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..frameworks.layers import NAME_SCOPES, onnx_layers
from .complexity import Array, Complexity, LayerProfile, input_bytes, total
from .onnx_formulas import VIEWS, Graph, UnknownShapeError, count_nodes, is_known

_SMALL = 1024
"""Tensors of up to as many elements are read: shapes, axes, repeats."""
_PASSES_WEIGHTS = {"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity", "QuantizeLinear"}
_PASSES_WEIGHTS |= {"Unsqueeze", "Squeeze"}


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
        for layer in onnx_layers(path, feeds):
            graph.shapes.setdefault(layer.scopes[-1], layer.array.shape)
        held = _output_bytes(graph)
    try:
        counted = count_nodes(graph)
    except UnknownShapeError as error:
        notes.append(f"no operations are counted: the shape of {str(error)!r} cannot be told")
        counted, is_counted = {}, False
    if any(it.op_type in ("If", "Loop", "Scan") for it in graph.model.graph.node):
        notes.append("what is inside of If, Loop and Scan is not counted")
    foreign = {it.op_type for it in graph.model.graph.node if not is_known(it)}
    if foreign:
        notes.append(f"operators that are not ONNX's are not counted: {', '.join(sorted(foreign))}")
    layers = _layers(graph, counted)
    size = sum(layer.size_bytes for layer in layers)
    memory = None if held is None else size + held + input_bytes(feeds)
    found = total(layers, memory, notes)
    if is_counted:
        return found
    return Complexity(found.parameters, found.size_bytes, layers=found.layers, notes=found.notes)


def _read(path: Path, feeds: Mapping[str, Array]) -> Graph:
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
    graph = Graph(model)
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


def _layers(graph: Graph, counted: Mapping[int, tuple[int, int]]) -> list[LayerProfile]:
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


def _held(graph: Graph) -> dict[int, tuple[int, int]]:
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


def _output_bytes(graph: Graph) -> int | None:
    """Return the bytes of what all nodes return, but views; None where a shape is not known."""
    found = 0
    for node in graph.model.graph.node:
        if node.op_type in VIEWS:
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
        if entry.key == NAME_SCOPES:
            scopes = [str(scope) for scope in ast.literal_eval(entry.value)[:-1] if scope]
            if scopes:
                return max(scopes, key=len)
    return str(node.name or node.output[0])
