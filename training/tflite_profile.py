"""Counts what a TensorFlow Lite file computes and holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..frameworks.base import import_framework
from .complexity import Complexity, LayerProfile, total

# Operators that hold weights and compute nothing with them, or elementwise.
_FREE = {"DEQUANTIZE", "QUANTIZE", "GATHER", "EMBEDDING_LOOKUP", "RESHAPE", "TRANSPOSE", "PAD"}
_FREE |= {"ADD", "SUB", "MUL", "DIV", "CONCATENATION", "PADV2", "CAST", "MAXIMUM", "MINIMUM"}
_FREE |= {"PRELU", "STRIDED_SLICE", "SLICE", "MEAN", "SUM", "SELECT", "SELECT_V2", "RSQRT", "POW"}
_ACTIVATIONS = {"RELU", "RELU6", "PRELU", "ELU", "LEAKY_RELU", "LOGISTIC", "TANH", "HARD_SWISH"}
_ACTIVATIONS |= {"GELU"}
_POOLS = {"MAX_POOL_2D", "AVERAGE_POOL_2D"}
_BITS = {"INT4": 4, "UINT4": 4, "INT2": 2}
_INTEGERS = {"INT64", "BOOL", "STRING", "UINT64"}


def profile_tflite(path: Path, input_bytes: int) -> Complexity:
    """Count the parameters and operations of a file, at the batch that is fixed in it.

    Parameters are the constants of the file, but for scalars and shapes: integers of 32 bits count
    only as biases. With an operator on weights that is not known, operations are not counted.

    Args:
        path: the file.
        input_bytes: of the inputs.
    """
    import_framework("ai_edge_litert", "tflite")
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    types = {value: name for name, value in vars(schema.TensorType).items() if name.isupper()}
    graph = model.subgraphs[0]
    layers, unknown, memory, counted = [], [], input_bytes, set()
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
        made = graph.tensors[operator.outputs[0]]
        shape = _shape(made)
        given = [graph.tensors[index] for index in operator.inputs if index >= 0]
        constants = [tensor for tensor in given if _is_constant(tensor, model)]
        weights = [it for it in constants if _is_weight(it, kind, types)]
        numbers = size = 0
        for tensor in weights:
            if id(tensor) not in counted:
                counted.add(id(tensor))
                count = math.prod(_shape(tensor))
                numbers += count
                size += math.ceil(count * _bits(tensor, types) / 8)
        macs, elements = _operations(kind, given, shape)
        if weights and not macs and not elements and kind not in _FREE:
            unknown.append(kind)
        memory += math.ceil(math.prod(shape) * _bits(made, types) / 8)
        if macs or elements or numbers:
            name = made.name.decode() if made.name else kind
            layers.append(LayerProfile(name, kind, shape, numbers, size, macs + elements, macs))
    found = total(layers, memory + sum(layer.size_bytes for layer in layers))
    if not unknown:
        return found
    note = f"operations are not counted: those of {', '.join(sorted(set(unknown)))} are not known"
    return Complexity(found.parameters, found.size_bytes, layers=found.layers, notes=(note,))


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def _is_constant(tensor: Any, model: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _is_weight(tensor: Any, kind: str, types: dict[int, str]) -> bool:
    name = types[tensor.type]
    if not _shape(tensor) or name in _INTEGERS:
        return False
    return name != "INT32" or kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def _bits(tensor: Any, types: dict[int, str]) -> int:
    name = types[tensor.type]
    if name in _BITS:
        return _BITS[name]
    digits = "".join(char for char in name if char.isdigit())
    return int(digits) if digits else 8


def _operations(kind: str, given: list[Any], made: tuple[int, ...]) -> tuple[int, int]:
    """Return multiply-accumulates and other operations of an operator."""
    elements = math.prod(made)
    shapes = [_shape(tensor) for tensor in given]
    has_bias = len(given) > 2
    if kind == "CONV_2D":  # weights (outputs, height, width, inputs of a group)
        return elements * math.prod(shapes[1][1:]), elements * has_bias
    if kind == "DEPTHWISE_CONV_2D":  # weights (1, height, width, outputs)
        return elements * math.prod(shapes[1][1:3]), elements * has_bias
    if kind == "FULLY_CONNECTED":  # weights (outputs, inputs)
        return elements * shapes[1][-1], elements * has_bias
    if kind == "BATCH_MATMUL":  # (..., rows, inner) by (..., inner, columns)
        return math.prod(shapes[0]) * made[-1], 0
    if kind == "TRANSPOSE_CONV":  # output shape, weights (outputs, height, width, inputs), data
        return math.prod(shapes[2]) * math.prod(shapes[1][:3]), elements * (len(given) > 3)
    if kind in _ACTIVATIONS or kind.startswith("RESIZE_"):
        return 0, elements
    if kind in _POOLS:
        return 0, math.prod(shapes[0])
    return 0, 0
