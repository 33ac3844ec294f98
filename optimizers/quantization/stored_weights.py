"""Weights in a graph as integers or float16, and what reads them back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError
from .layers import QuantLayer
from .weights import QuantizedWeight, integer_tensor

if TYPE_CHECKING:
    import onnx


class WeightWriter:
    """Puts stored weights in the place of float ones; layers that share one share it still."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._nodes = {node.name: node for node in model.graph.node}
        self._written: list[tuple[str, QuantizedWeight | None, bool, str]] = []
        self._new: list[Any] = []

    def write_integers(self, layer: QuantLayer, weight: QuantizedWeight, *, is_fused: bool) -> None:
        """Store integers, with a DequantizeLinear along the axis of the output channels.

        A layer that is to run on integers gets what ONNX Runtime fuses to its integer kernels: zero
        points, and INT8. So a Cast widens INT4 and INT2, which the runtime folds when it opens the
        file: its kernels take no INT4, and it does not open what feeds INT2 to them.
        """
        from onnx import TensorProto, helper, numpy_helper

        if self._reuse(layer, weight, is_fused):
            return
        name = self._fresh(layer, f"i{weight.bits}")
        scale = numpy_helper.from_array(weight.scale.astype(np.float32), f"{name}_scale")
        self._model.graph.initializer.extend([integer_tensor(name, weight.values, weight.bits)])
        self._model.graph.initializer.append(scale)
        source = name
        if is_fused and weight.bits < 8:
            source = f"{name}_i8"
            cast = helper.make_node("Cast", [name], [source], to=TensorProto.INT8)
            self._new.append(cast)
        inputs = [source, scale.name]
        if is_fused:
            zeros = numpy_helper.from_array(np.zeros(len(weight.scale), np.int8), f"{name}_zero")
            self._model.graph.initializer.append(zeros)
            inputs.append(zeros.name)
        node = helper.make_node(
            "DequantizeLinear",
            inputs,
            [f"{name}_dq"],
            axis=layer.channel_axis,
        )
        self._put(layer, weight, is_fused, node)

    def write_float16(self, layer: QuantLayer) -> None:
        """Store the weight in half precision, with a Cast that ONNX Runtime folds when it opens it.

        Raises:
            ModelError: the weight holds what float16 does not.
        """
        from onnx import TensorProto, helper, numpy_helper

        if self._reuse(layer, None, False):
            return
        tensor = next(t for t in self._model.graph.initializer if t.name == layer.weight)
        array = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise ModelError(
                f"{layer.name}: {layer.weight}: {float(np.abs(array).max()):g} is beyond the"
                " largest float16, 65504",
                hint="leave this layer at 32 bits",
            )
        name = self._fresh(layer, "f16")
        self._model.graph.initializer.append(numpy_helper.from_array(half, name))
        node = helper.make_node("Cast", [name], [f"{name}_f32"], to=TensorProto.FLOAT)
        self._put(layer, None, False, node)

    def finish(self) -> None:
        """Put the new nodes first, and drop the float weights that nothing takes any more."""
        graph = self._model.graph
        nodes = [*self._new, *(clone(node) for node in graph.node)]
        del graph.node[:]
        graph.node.extend(nodes)
        taken = {item[0] for item in self._written} - taken_names(graph)
        kept = [clone(tensor) for tensor in graph.initializer if tensor.name not in taken]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _fresh(self, layer: QuantLayer, kind: str) -> str:
        taken = {tensor.name for tensor in self._model.graph.initializer}
        name = f"{layer.weight}_{kind}"
        copies = 0
        while name in taken:
            copies += 1
            name = f"{layer.weight}_{kind}_{copies}"
        return name

    def _reuse(self, layer: QuantLayer, weight: QuantizedWeight | None, is_fused: bool) -> bool:
        for name, other, fused, output in self._written:
            if name == layer.weight and fused == is_fused and _is_same(weight, other):
                self._nodes[layer.node].input[1] = output
                return True
        return False

    def _put(
        self, layer: QuantLayer, weight: QuantizedWeight | None, is_fused: bool, node: Any
    ) -> None:
        from onnx import TensorProto, helper

        self._new.append(node)
        self._nodes[layer.node].input[1] = node.output[0]
        self._written.append((layer.weight, weight, is_fused, node.output[0]))
        info = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, layer.shape)
        self._model.graph.value_info.append(info)


def _is_same(one: QuantizedWeight | None, other: QuantizedWeight | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.bits == other.bits
        and np.array_equal(one.values, other.values)
        and np.array_equal(one.scale, other.scale)
    )


def taken_names(graph: Any) -> set[str]:
    """Return what nodes take, those of the graphs in them included."""
    found = {value.name for value in graph.output}
    for node in graph.node:
        found |= set(node.input)
        for item in node.attribute:
            for inner in (*item.graphs, *((item.g,) if item.HasField("g") else ())):
                found |= taken_names(inner)
    return found


def clone(message: Any) -> Any:
    """Return a copy of a protobuf message."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
