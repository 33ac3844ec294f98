"""The layers of an ONNX graph whose weights can be quantized, in the order of the graph."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...frameworks.layers import NAME_SCOPES

if TYPE_CHECKING:
    import onnx

LAYER_TYPES = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators that count as a layer when their weight is a constant."""


@dataclass(frozen=True)
class QuantLayer:
    """A layer with a constant weight.

    Attributes:
        index: its place among the layers, in the order of the graph, from 0.
        name: the module that it comes from, where its weight is called ``NAME.weight`` or
            PyTorch's exporter noted it, else the name of its node. Unique.
        op_type: ``Conv``, ``ConvTranspose``, ``MatMul`` or ``Gemm``.
        node: the name of its node, unique.
        weight: the initializer that holds its weight.
        shape: of the weight.
        channel_axis: of the output channels in the weight. A ``ConvTranspose`` with groups has as
            many there as one group; they share the scale then.
        group: of a convolution; else 1.
        kernel: spatial sizes of a convolution; empty for ``MatMul`` and ``Gemm``.
    """

    index: int
    name: str
    op_type: str
    node: str
    weight: str
    shape: tuple[int, ...]
    channel_axis: int
    group: int
    kernel: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        return math.prod(self.shape)

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a convolution over single points, of whatever dimension."""
        return self.op_type == "Conv" and all(size == 1 for size in self.kernel)

    @property
    def is_grouped(self) -> bool:
        """Whether it is a convolution in groups, depthwise ones among them."""
        return self.group > 1


def quantizable_layers(model: onnx.ModelProto) -> tuple[QuantLayer, ...]:
    """Return the layers of a prepared model (see :func:`.prepare.prepare`).

    Convolutions, and products with a constant matrix on the right; those in the branches of an If
    or the body of a Loop are left out.
    """
    constants = {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == tensor.FLOAT
    }
    nodes = [node for node in model.graph.node if _has_weight(node, constants)]
    return tuple(
        QuantLayer(
            index=index,
            name=name,
            op_type=node.op_type,
            node=node.name,
            weight=node.input[1],
            shape=constants[node.input[1]],
            channel_axis=_channel_axis(node, len(constants[node.input[1]])),
            group=attribute(node, "group", 1),
            kernel=constants[node.input[1]][2:] if node.op_type.startswith("Conv") else (),
        )
        for index, (node, name) in enumerate(zip(nodes, _names(nodes), strict=True))
    )


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return an attribute of a node, or the default where it has none."""
    from onnx import helper

    found = (item for item in node.attribute if item.name == name)
    return next((helper.get_attribute_value(item) for item in found), default)


def _has_weight(node: Any, constants: dict[str, tuple[int, ...]]) -> bool:
    if node.op_type not in LAYER_TYPES or node.domain not in ("", "ai.onnx"):
        return False
    shape = constants.get(node.input[1], ()) if len(node.input) > 1 else ()
    return len(shape) > 1 and math.prod(shape) > 0 and node.input[0] not in constants


def _channel_axis(node: Any, rank: int) -> int:
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _names(nodes: list[Any]) -> Iterator[str]:
    """Name layers: by their weight (the first that takes it), their module (if its only one), node.

    Module names win over the names of nodes, which the exporter invents.
    """
    modules = [_scope(node) for node in nodes]
    alone = Counter(modules)
    weights = {
        node.input[1].removesuffix(".weight") for node in nodes if node.input[1].endswith(".weight")
    }
    used: set[str] = set()
    for node, module in zip(nodes, modules, strict=True):
        weight = node.input[1].removesuffix(".weight")
        if weight in weights and node.input[1].endswith(".weight") and weight not in used:
            name = weight
        elif module is not None and alone[module] == 1 and module not in weights | used:
            name = module
        else:
            name = node.name
        used.add(name)
        yield name


def _scope(node: Any) -> str | None:
    """Return the module that a node comes from, where PyTorch's exporter noted it."""
    for entry in node.metadata_props:
        if entry.key == NAME_SCOPES:
            scopes = [scope for scope in ast.literal_eval(entry.value)[:-1] if scope]
            return scopes[-1] if scopes else None
    return None
