"""Evens out the ranges of channels between layers, without changing what the network computes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from .layers import attribute

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

_PASSING = ("Relu", "LeakyRelu")
"""f(s x) = s f(x) for every positive s."""
_ROUNDS = 40
_CLOSE = 1e-3
"""Once no scale differs from 1 by more, it is done."""
_LARGEST_STEP = 1e4


def equalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a prepared model with equalized layers.

    Cross-layer equalization: section 4.1 of Nagel et al. 2019, "Data-free quantization through
    weight equalization and bias correction", arXiv:1906.04721. Between two convolutions, with
    nothing or a ReLU in between, each channel is divided by s and the weights that take it are
    multiplied by s = sqrt(r1 / r2), where r1 and r2 are the largest weights of the channel on the
    two sides: then both are the same. A chain of layers, depthwise ones among them, is gone through
    until nothing changes. A tensor that anything else takes stays as it is.
    """
    from onnx import numpy_helper

    equalized = type(model)()
    equalized.CopyFrom(model)
    pairs = _pairs(equalized)
    names = {node.input[1] for pair in pairs for node in pair}
    names |= {node.input[2] for node, _ in pairs if len(node.input) > 2}
    tensors = {tensor.name: tensor for tensor in equalized.graph.initializer}
    # In float64, as the factors of many rounds are multiplied.
    arrays = {
        name: numpy_helper.to_array(tensors[name]).astype(np.float64) for name in names if name
    }
    for _ in range(_ROUNDS):
        largest = max((_equalize(pair, arrays) for pair in pairs), default=0.0)
        if largest < _CLOSE:
            break
    for name, array in arrays.items():
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return equalized


def _pairs(model: onnx.ModelProto) -> list[tuple[Any, Any]]:
    """Return convolutions of which the second takes all that the first returns, and alone."""
    from .stored_weights import taken_names

    consumers: dict[str, list[Any]] = defaultdict(list)
    uses: dict[str, int] = defaultdict(int)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node)
            uses[name] += 1
    for node in model.graph.node:
        for item in node.attribute:
            for inner in (*item.graphs, *((item.g,) if item.HasField("g") else ())):
                for name in taken_names(inner):
                    uses[name] += 1
    outputs = {value.name for value in model.graph.output}
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == tensor.FLOAT}

    def is_own(node: Any) -> bool:
        names = [name for name in node.input[1:] if name]
        return node.op_type == "Conv" and all(name in floats and uses[name] == 1 for name in names)

    pairs = []
    for first in model.graph.node:
        if not is_own(first):
            continue
        value = first.output[0]
        while True:
            found = consumers[value]
            if len(found) != 1 or uses[value] != 1 or value in outputs:
                break
            if found[0].op_type in _PASSING:
                value = found[0].output[0]
                continue
            if is_own(found[0]) and found[0].input[0] == value:
                pairs.append((first, found[0]))
            break
    return pairs


def _equalize(pair: tuple[Any, Any], arrays: dict[str, Array]) -> float:
    """Scale the channels between two convolutions; return how far the scales are from 1."""
    first, second = pair
    before, after = arrays[first.input[1]], arrays[second.input[1]]
    group = attribute(second, "group", 1)
    channels = before.shape[0]
    # By the channels that go in: (group, outputs of it, inputs of it, taps).
    taken = after.reshape(group, -1, after.shape[1], int(np.prod(after.shape[2:])))
    made_by = np.abs(before.reshape(channels, -1)).max(axis=1)
    taken_by = np.abs(taken).max(axis=(1, 3)).ravel()
    alive = (made_by > 0) & (taken_by > 0)
    ratio = np.divide(made_by, taken_by, out=np.ones(channels), where=alive)
    scale = np.clip(np.sqrt(ratio), 1 / _LARGEST_STEP, _LARGEST_STEP)
    arrays[first.input[1]] = before / scale.reshape(-1, *[1] * (before.ndim - 1))
    if len(first.input) > 2 and first.input[2]:
        arrays[first.input[2]] = arrays[first.input[2]] / scale
    scaled = taken * scale.reshape(group, 1, -1, 1)
    arrays[second.input[1]] = scaled.reshape(after.shape)
    return float(np.abs(scale - 1).max())
