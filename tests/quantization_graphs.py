"""Small ONNX graphs for tests of quantization, and ways to run them; nothing here is a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ingot.frameworks.onnx import import_onnxruntime
from ingot.optimizers.quantization import (
    Precision,
    dequantize,
    integer_weights,
    quantizable_layers,
)

Arrays = Mapping[str, np.ndarray]


class Builder:
    """Writes a graph node by node; weights are drawn from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"n_{output}", **attributes))
        return output

    def constant(self, name: str, values: Any) -> str:
        values = np.asarray(values)
        values = values.astype(np.float32) if values.dtype == np.float64 else values
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def normal(self, name: str, *shape: int, scale: float | None = None) -> str:
        spread = scale or np.sqrt(2 / np.prod(shape[1:]))
        return self.constant(name, self.random.normal(0, spread, shape))

    def conv(self, x: str, name: str, out: int, into: int, size: int = 3, group: int = 1) -> str:
        weight = self.normal(f"{name}.weight", out, into // group, size, size)
        bias = self.normal(f"{name}.bias", out, scale=0.1)
        pads = [size // 2] * 4
        return self.node("Conv", [x, weight, bias], f"{name}_y", pads=pads, group=group)

    def model(self, inputs: Mapping[str, list[Any]], outputs: Mapping[str, list[Any]]) -> Any:
        kinds = dict.fromkeys(inputs, TensorProto.FLOAT)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, kinds[n], shape) for n, shape in inputs.items()],
            [helper.make_tensor_value_info(n, 1, shape) for n, shape in outputs.items()],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def residual_net() -> Any:
    """BatchNorm, a residual block, a depthwise and a pointwise convolution, pooling, a Gemm."""
    b = Builder()
    x = b.conv("image", "stem", 8, 3)
    for part, low, high in (("g", 0.5, 2), ("b", -1, 1), ("m", -1, 1), ("v", 0.5, 2)):
        b.constant(f"bn.{part}", b.random.uniform(low, high, 8))
    x = b.node("BatchNormalization", [x, "bn.g", "bn.b", "bn.m", "bn.v"], "bn_y")
    x = b.node("Relu", [x], "stem_relu")
    y = b.node("Relu", [b.conv(x, "block.c1", 8, 8)], "block_relu")
    x = b.node("Relu", [b.node("Add", [b.conv(y, "block.c2", 8, 8), x], "sum")], "sum_relu")
    x = b.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    b.constant("zero", np.float32(0))
    b.constant("six", np.float32(6))
    x = b.node("Clip", [b.conv(x, "deep", 8, 8, group=8), "zero", "six"], "deep_clip")
    x = b.node("Relu", [b.conv(x, "point", 12, 8, size=1)], "point_relu")
    x = b.node("Flatten", [x], "flat")
    b.normal("fc.weight", 5, 12 * 16)
    b.normal("fc.bias", 5)
    b.node("Gemm", [x, "fc.weight", "fc.bias"], "logits", transB=1)
    return b.model({"image": ["batch", 3, 8, 8]}, {"logits": ["batch", 5]})


def image_batches() -> list[Arrays]:
    """Three batches of 16 for :func:`residual_net`."""
    random = np.random.default_rng(1)
    return [{"image": random.normal(0, 1, (16, 3, 8, 8)).astype(np.float32)} for _ in range(3)]


def session(model: Any, optimized: Path | None = None) -> Any:
    runtime = import_onnxruntime()
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    return runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def run(model: Any, feeds: Arrays) -> list[np.ndarray]:
    return list(session(model).run(None, dict(feeds)))


def optimized_operators(model: Any, folder: Path) -> Counter[str]:
    """Count the operators that ONNX Runtime really runs."""
    session(model, folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def everywhere(model: Any, precision: Precision) -> dict[str, Precision]:
    return {layer.name: precision for layer in quantizable_layers(model)}


def with_rounded_weights(model: Any, plan: Mapping[str, Precision]) -> Any:
    """Return the float model with the weights that its quantized one stands for."""
    integers = integer_weights(model, plan)
    arrays = {
        layer.weight: dequantize(integers[layer.name], layer.channel_axis)
        for layer in quantizable_layers(model)
        if layer.name in integers
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return copy
