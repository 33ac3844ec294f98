"""Counts the operations of the nodes of an ONNX graph, from the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]

VIEWS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Constant", "Shape"}
VIEWS |= {"DequantizeLinear"}  # a runtime fuses it into the layer that follows
_NORMS = {"BatchNormalization", "InstanceNormalization", "LayerNormalization"}
_NORMS |= {"GroupNormalization", "RMSNormalization", "SimplifiedLayerNormalization"}
_ACTIVATIONS = {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Clip", "Gelu", "HardSigmoid"}
_ACTIVATIONS |= {"HardSwish", "Sigmoid", "Tanh", "Mish", "Softplus", "ThresholdedRelu", "Swish"}
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"}
_RECURRENT = ("LSTM", "GRU", "RNN")
_FOREIGN = {"FusedMatMul", "MatMulNBits", "QuantizeLinear"}


class UnknownShapeError(Exception):
    """Shape inference does not tell the shape of a tensor that is needed."""


@dataclass
class Graph:
    """A graph, and what is known of its tensors."""

    model: Any
    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        if name not in self.shapes:
            raise UnknownShapeError(name)
        return self.shapes[name]


def count_nodes(graph: Graph) -> dict[int, tuple[int, int]]:
    """Return multiply-accumulates and other operations of each node that has any, by position."""
    counted = {}
    for index, node in enumerate(graph.model.graph.node):
        formula = _FORMULAS.get(node.op_type) if is_known(node) else None
        macs = formula(node, graph) if formula is not None else 0
        elements = _elements(node, graph)
        if macs or elements:
            counted[index] = (macs, elements)
    return counted


def _elements(node: Any, graph: Graph) -> int:
    """Return the operations that are not matrix products; see :mod:`.complexity`."""
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


def _convolution(weights: int) -> Callable[[Any, Graph], int]:
    def count(node: Any, graph: Graph) -> int:
        kernel, made = graph.shape(node.input[weights]), graph.shape(node.output[0])
        return math.prod(made) * math.prod(kernel[1:])

    return count


def _transposed(node: Any, graph: Graph) -> int:
    kernel, given = graph.shape(node.input[1]), graph.shape(node.input[0])
    return math.prod(given) * math.prod(kernel[1:])


def _gemm(node: Any, graph: Graph) -> int:
    first = graph.shape(node.input[0])
    return math.prod(graph.shape(node.output[0])) * first[0 if _integer(node, "transA") else 1]


def _matmul(node: Any, graph: Graph) -> int:
    return math.prod(graph.shape(node.output[0])) * graph.shape(node.input[0])[-1]


def _packed_matmul(node: Any, graph: Graph) -> int:
    """MatMulNBits: the packed weights do not tell their shape, an attribute does."""
    return math.prod(graph.shape(node.output[0])) * _integer(node, "K")


def _recurrence(node: Any, graph: Graph) -> int:
    """X [length, batch, size], W [directions, gates x hidden, size], R [..., hidden]."""
    length, batch = graph.shape(node.input[0])[:2]
    weights = math.prod(graph.shape(node.input[1])) + math.prod(graph.shape(node.input[2]))
    return length * batch * weights


def _einsum(node: Any, graph: Graph) -> int:
    """Every index runs through its size once; of two operands."""
    equation = next(it.s.decode() for it in node.attribute if it.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        return 0
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes |= dict(zip(term, graph.shape(name), strict=True))
    return math.prod(sizes.values())


def _attention(node: Any, graph: Graph) -> int:
    """Q, K and V: (batch, heads, length, size), or (batch, length, heads x size)."""
    query, key, value = (graph.shape(name) for name in node.input[:3])
    if len(query) == 3:
        values = _integer(node, "q_num_heads") * value[2] // _integer(node, "kv_num_heads")
        return query[0] * query[1] * key[1] * (query[2] + values)
    return math.prod(query[:3]) * key[2] * (query[3] + value[3])


_FORMULAS: Mapping[str, Callable[[Any, Graph], int]] = {
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


def is_known(node: Any) -> bool:
    """Whether it is an operator of ONNX, or one of ONNX Runtime's that is known here."""
    if node.domain in ("", "ai.onnx"):
        return True
    return node.op_type in _FOREIGN or node.op_type in _ACTIVATIONS | _NORMS | VIEWS


def _integer(node: Any, name: str) -> int:
    return next((int(it.i) for it in node.attribute if it.name == name), 0)
