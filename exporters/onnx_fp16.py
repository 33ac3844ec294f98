"""Turns an fp32 ONNX model into fp16, but for the operators that need fp32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

_LARGEST = 65504.0
"""The largest finite fp16 number (IEEE 754 binary16)."""
_SMALLEST = 2.0**-24
"""The smallest positive one; what is nearer to 0 would become 0."""

# Sums of many squares overflow: the statistics of a normalization stay fp32.
_WIDE = ("ReduceL2", "ReduceSumSquare", "InstanceNormalization")

# Scales of quantized tensors: these operators take them in fp32 only, or lose their small ones.
_QUANTIZED = ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
_QUANTIZE = ("QuantizeLinear", "DequantizeLinear")
_QUANTIZE_TAKES_FP16 = 19
"""The opset from which on the latter take scales in fp16, too."""


def to_fp16(model: Any, *, keep_io: bool) -> tuple[Any, tuple[str, ...]]:
    """Convert a model below 2 GiB with onnxconverter-common.

    Args:
        model: an ``onnx_ir.Model``.
        keep_io: inputs and outputs stay fp32.

    Returns:
        the new model, and a note that names what stays fp32, if anything does.
    """
    import onnx_ir
    from onnxconverter_common import float16

    proto = onnx_ir.serde.serialize_model(model)
    block = [*float16.DEFAULT_OP_BLOCK_LIST, *_WIDE, *_QUANTIZED]
    if model.opset_imports.get("", 0) < _QUANTIZE_TAKES_FP16:
        block += _QUANTIZE
    _name_nodes(proto)
    _keep_matmul_apart(proto)
    large = _nodes_with_large_constants(proto)
    _keep_constants_apart(proto, set(block), set(large))
    kept = Counter(
        node.op_type for node in proto.graph.node if node.op_type in block or node.name in large
    )
    converted = float16.convert_float_to_float16(
        proto,
        min_positive_val=_SMALLEST,
        max_finite_val=_LARGEST,
        keep_io_types=keep_io,
        op_block_list=block,
        node_block_list=large,
        disable_shape_infer=False,
        check_fp16_ready=False,
    )
    del converted.graph.value_info[:]
    notes: tuple[str, ...] = ()
    if kept:
        named = ", ".join(f"{name} ({count})" for name, count in sorted(kept.items()))
        notes = (f"operators kept in fp32: {named}",)
    return onnx_ir.serde.deserialize_model(converted), notes


def _name_nodes(proto: Any) -> None:
    seen: set[str] = set()
    for index, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _keep_matmul_apart(proto: Any) -> None:
    """Put a multiplication by a vector between a MatMul and the Transpose or scale before it.

    ONNX Runtime 1.31 fuses these, as attention has them, with the MatMul, and crashes on its own
    fused operator in fp16 while it opens the file. The vector, which holds the scale, is as long as
    the dimension that is summed over.
    """
    from onnx import helper, numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(proto).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
    }
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    shapes |= {name: list(tensor.dims) for name, tensor in constants.items()}
    makers = {name: node for node in proto.graph.node for name in node.output}
    nodes = []
    for node in proto.graph.node:
        if node.op_type == "MatMul":
            found = [_scale(makers.get(name), constants) for name in node.input]
            raw = [node.input[n] if item is None else item[0] for n, item in enumerate(found)]
            transposed = [n for n, name in enumerate(raw) if _is_transposed(name, makers)]
            left, right = (shapes.get(name, []) for name in raw)
            length = (left[-1] if left else 0) or (right[-2] if len(right) > 1 else 0)
            if length and (transposed or any(found)):
                factor = np.prod([item[1] for item in found if item], dtype=np.float32)
                node.input[:] = raw
                for n in transposed or [0]:
                    vector = np.full([length] if n == 0 else [length, 1], factor, np.float32)
                    factor = np.float32(1)
                    name = f"{node.output[0]}_scale{n}"
                    proto.graph.initializer.append(numpy_helper.from_array(vector, name))
                    inputs, output = [raw[n], name], f"{name}d"
                    nodes.append(helper.make_node("Mul", inputs, [output], f"{node.name}_scale{n}"))
                    node.input[n] = output
        nodes.append(node)
    used = _used_names(nodes) | {value.name for value in proto.graph.output}
    kept = [node for node in nodes if used & set(node.output) or _scale(node, constants) is None]
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    unused = [tensor for tensor in proto.graph.initializer if tensor.name not in used]
    for tensor in unused:
        proto.graph.initializer.remove(tensor)


def _keep_constants_apart(proto: Any, block: set[str], nodes: set[str]) -> None:
    """Give operators that stay fp32 constants of their own, which stay fp32, too.

    Of a constant with a value_info, the converter would cast an fp16 copy back.
    """
    constants = {
        tensor.name: tensor
        for tensor in proto.graph.initializer
        if tensor.data_type == tensor.FLOAT
    }
    infos = [info for info in proto.graph.value_info if info.name not in constants]
    copies = [type(info).FromString(info.SerializeToString()) for info in infos]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(copies)
    wide = [node for node in proto.graph.node if node.op_type in block or node.name in nodes]
    names = {node.name for node in wide}
    shared = _used_names(node for node in proto.graph.node if node.name not in names)
    shared |= {value.name for value in proto.graph.output}
    made = set()
    for node in wide:
        for index, name in enumerate(node.input):
            if name in constants and name in shared:
                node.input[index] = f"{name}_fp32"
                if name not in made:
                    copy = proto.graph.initializer.add()
                    copy.CopyFrom(constants[name])
                    copy.name = f"{name}_fp32"
                    made.add(name)


def _used_names(nodes: Iterable[Any]) -> set[str]:
    """Return what nodes take, and what the graphs in them (of If, Loop and Scan) do."""
    used = set()
    for node in nodes:
        used |= set(node.input)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                used |= _used_names(graph.node) | {value.name for value in graph.output}
    return used


def _is_transposed(name: str, makers: dict[str, Any]) -> bool:
    """Whether a tensor comes out of a Transpose, perhaps through Reshapes."""
    node = makers.get(name)
    while node is not None and node.op_type == "Reshape":
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Transpose"


def _scale(node: Any, constants: dict[str, Any]) -> tuple[str, float] | None:
    """Return what a node multiplies by one number, and the number; None for any other node."""
    from onnx import numpy_helper

    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    for place in (1, 0) if node.op_type == "Mul" else (1,):
        tensor = constants.get(node.input[place])
        if tensor is not None and all(size == 1 for size in tensor.dims):
            value = float(numpy_helper.to_array(tensor).reshape(()))
            return node.input[1 - place], value if node.op_type == "Mul" else 1 / value
    return None


def _nodes_with_large_constants(proto: Any) -> list[str]:
    from onnx import TensorProto, numpy_helper

    large = set()
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            finite = array[np.isfinite(array)]
            if finite.size and float(np.abs(finite).max()) > _LARGEST:
                large.add(tensor.name)
    return [node.name for node in proto.graph.node if large & set(node.input)]
