"""Which operators run on integers when certain layers do: those that lie between them.

A layer with uint8 activations quantizes what goes into it and, where ONNX Runtime needs it for its
integer kernel, what comes out. An operator beside it (Add, MaxPool, Concat, ...) runs on integers
where it would otherwise only stand between two conversions; a residual sum that normalization or
attention reads stays float, as 8 bits would lose too much of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .layers import QuantLayer, attribute
from .plan import Precision

if TYPE_CHECKING:
    import onnx

# With integer kernels in ONNX Runtime, and scales of their own.
_JOINS = ("Add", "Mul", "Concat", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
# They only move or choose values: the scale of what goes in is that of what comes out.
_MOVES = (
    "AveragePool",
    "Flatten",
    "MaxPool",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
# A quantized output cannot leave its range: they are part of the layer before them.
_CLAMPS = ("Clip", "Relu")


@dataclass(frozen=True)
class Regions:
    """What is quantized with a plan.

    Attributes:
        nodes: names of the nodes that run on integers, layers first, then in the graph's order.
        tensors: activations that are quantized, in the graph's order.
        clamped: what goes into a ReLU or Clip that becomes part of the operator before it, and what
            comes out, which is quantized in its place.
    """

    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    clamped: Mapping[str, str]


def effective(layer: QuantLayer, precision: Precision, model: onnx.ModelProto) -> Precision:
    """Return the precision that a layer can have: without an integer kernel its input stays float.

    ONNX Runtime has none for ConvTranspose, for products with a stack of matrices, for a Gemm that
    transposes its input or adds anything but one number an output channel.
    """
    if precision.activation == 8 and not _has_kernel(layer, model):
        return Precision(precision.weight, 32)
    return precision


def regions(model: onnx.ModelProto, layers: Iterable[QuantLayer]) -> Regions:
    """Return what runs on integers when these layers of a prepared model do."""
    quantized = [layer.node for layer in layers]
    if not quantized:
        return Regions((), (), {})
    graph = _Graph(model, quantized)
    chosen = set(quantized)
    between = {
        node.name for node in model.graph.node if node.op_type in (*_JOINS, *_MOVES, *_CLAMPS)
    }
    # The largest set in which every member has its reasons; taking one out may take others out.
    changed = True
    while changed:
        fits = {name for name in between if graph.fits(name, chosen | between)}
        changed = fits != between
        between = fits
    inside = chosen | between
    nodes = [node.name for node in model.graph.node if node.name in between]
    clamped = graph.clamped(inside)
    tensors = tuple(name for name in graph.tensors(inside) if name not in clamped)
    return Regions((*quantized, *nodes), tensors, clamped)


class _Graph:
    def __init__(self, model: onnx.ModelProto, layers: Iterable[str]) -> None:
        from onnx import TensorProto

        self.nodes = {node.name: node for node in model.graph.node}
        self.layer_inputs = {self.nodes[name].input[0] for name in layers}
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self.floats = {
            value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT
        } - self.constants

    def fits(self, name: str, inside: set[str]) -> bool:
        """Whether an operator has integers on both sides of it."""
        node = self.nodes[name]
        taken = [value for value in self._data(node) if value]
        if not taken or any(value not in self.floats for value in (*taken, *node.output)):
            return False
        made = [self._is_integer(value, inside) for value in taken]
        if node.op_type == "Concat":
            if not any(made):
                return False
        elif not all(made):
            return False
        if node.op_type in _CLAMPS and self._is_fused(node, inside):
            return True
        return all(self._is_wanted(value, inside) for value in node.output)

    def _data(self, node: Any) -> list[str]:
        """Return the inputs that hold values, not shapes or limits."""
        if node.op_type in (*_MOVES, *_CLAMPS):
            return list(node.input[:1])
        # One factor or summand that is constant: the float operator is as fast, and loses nothing.
        return list(node.input)

    def _is_integer(self, value: str, inside: set[str]) -> bool:
        """Whether a tensor comes as integers, or is made integers for a layer anyway."""
        producer = self.producer.get(value)
        return (producer is not None and producer.name in inside) or value in self.layer_inputs

    def _is_wanted(self, value: str, inside: set[str]) -> bool:
        return any(
            node.name in inside and value in self._data(node) for node in self.consumers[value]
        )

    def _is_fused(self, node: Any, inside: set[str]) -> bool:
        """Whether it clamps what a convolution, whose output has to be quantized, returns."""
        producer = self.producer.get(node.input[0])
        return (
            producer is not None
            and producer.op_type == "Conv"
            and producer.name in inside
            and self._is_alone(node)
        )

    def _is_alone(self, node: Any) -> bool:
        """Whether nothing else takes what a node takes."""
        return len(self.consumers[node.input[0]]) == 1 and node.input[0] not in self.outputs

    def clamped(self, inside: set[str]) -> dict[str, str]:
        return {
            node.input[0]: node.output[0]
            for node in self.nodes.values()
            if node.op_type in _CLAMPS and node.name in inside and self._is_alone(node)
        }

    def tensors(self, inside: set[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for node in self.nodes.values():
            if node.name not in inside:
                continue
            is_layer = node.op_type in ("Conv", "MatMul", "Gemm")
            values = node.input[:1] if is_layer else self._data(node)
            if node.op_type not in ("MatMul", "Gemm"):
                values = [*values, *node.output]
            found |= dict.fromkeys(value for value in values if value in self.floats)
        return tuple(found)


def _has_kernel(layer: QuantLayer, model: onnx.ModelProto) -> bool:
    if layer.op_type == "Conv":
        return True
    if layer.op_type == "MatMul":
        return len(layer.shape) == 2
    if layer.op_type != "Gemm":
        return False
    node = next(node for node in model.graph.node if node.name == layer.node)
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0:
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    shapes: Mapping[str, list[int]] = {
        tensor.name: list(tensor.dims) for tensor in model.graph.initializer
    }
    return shapes.get(node.input[2]) == [layer.shape[layer.channel_axis]]
