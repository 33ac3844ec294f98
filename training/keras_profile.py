"""Counts what a Keras model computes and holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .complexity import Complexity, LayerProfile, input_bytes, total

_DENSE = {"Dense"}
_CONVOLUTIONS = {"Conv1D", "Conv2D", "Conv3D"}
_TRANSPOSED = {"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"}
_RECURRENT = {"LSTM", "GRU", "SimpleRNN"}
_DEPTHWISE = {"DepthwiseConv1D", "DepthwiseConv2D"}
_NORMS = {"BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization"}
_ACTIVATIONS = {"Activation", "ReLU", "LeakyReLU", "PReLU", "ELU"}
# They hold weights, and do no more than look them up, or turn a few numbers into others.
_LOOKUPS = {"Embedding", "Normalization", "Rescaling"}


def profile_keras(model: Any, feeds: Mapping[str, np.ndarray[Any, Any]]) -> Complexity:
    """Count parameters, and the operations of a model all of whose layers are known.

    Known are dense layers, convolutions, normalizations, activations and embeddings. With any other
    layer that has weights, operations are not counted.

    Args:
        model: the loaded model.
        feeds: inputs by name.
    """
    native = model.native
    traced = model.layers(feeds)
    shapes = {layer.name: layer.array.shape for layer in traced}
    activations = sum(layer.array.nbytes for layer in traced)
    layers, unknown = [], []
    for layer in native.layers:
        kind = type(layer).__name__
        parameters = sum(math.prod(weight.shape) for weight in layer.weights)
        size = sum(
            math.prod(weight.shape) * np.dtype(_numpy(weight)).itemsize for weight in layer.weights
        )
        given = _input_shape(layer, shapes, feeds)
        macs = _operations(layer, kind, given, shapes.get(layer.name))
        if macs is None:
            unknown.append(f"{layer.name} ({kind})")
        matrix, elements = macs or (0, 0)
        if kind == "InputLayer" or not (parameters or matrix or elements):
            continue
        layers.append(
            LayerProfile(
                layer.name,
                kind,
                shapes.get(layer.name),
                parameters,
                size,
                matrix + elements,
                matrix,
            )
        )
    size = sum(layer.size_bytes for layer in layers)
    found = total(layers, size + activations + input_bytes(feeds))
    if not unknown:
        return found
    note = f"operations are not counted: those of {', '.join(unknown[:3])} are not known"
    return Complexity(found.parameters, found.size_bytes, layers=found.layers, notes=(note,))


def _numpy(weight: Any) -> str:
    return str(weight.dtype) if str(weight.dtype) != "bfloat16" else "float16"


def _input_shape(
    layer: Any, shapes: Mapping[str, tuple[int, ...]], feeds: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """Return the shape of a layer's input; None when it is not the output of one known layer."""
    try:
        before = layer.input._keras_history.operation.name
    except (AttributeError, ValueError):
        return None
    if before in shapes:
        return shapes[before]
    arrays = list(feeds.values())
    return tuple(arrays[0].shape) if len(arrays) == 1 else None


def _operations(
    layer: Any, kind: str, given: tuple[int, ...] | None, made: tuple[int, ...] | None
) -> tuple[int, int] | None:
    """Return multiply-accumulates and other operations; None when they are not known."""
    if not layer.weights and kind not in _ACTIVATIONS:
        return 0, 0
    if kind in _LOOKUPS:
        return 0, 0
    if made is None:
        return None
    elements = math.prod(made)
    if kind in _NORMS:
        return 0, 2 * elements
    if kind in _ACTIVATIONS:
        return 0, elements
    if kind in _RECURRENT and given is not None:  # (batch, length, size)
        held = [it.shape for it in layer.weights if "bias" not in it.name]
        return given[0] * given[1] * sum(map(math.prod, held)), 0
    is_transposed = kind in _TRANSPOSED and given is not None
    if kind not in _DENSE | _CONVOLUTIONS | _DEPTHWISE and not is_transposed:
        return None
    kernel = tuple(layer.kernel.shape)
    if is_transposed:
        assert given is not None
        products = math.prod(given[:-1]) * math.prod(kernel)
    else:
        products = elements * math.prod(kernel[:-2] if kind in _DEPTHWISE else kernel[:-1])
    activation = getattr(layer.activation, "__name__", "linear")
    extra = elements * (bool(layer.use_bias) + (activation != "linear"))
    return products, extra
