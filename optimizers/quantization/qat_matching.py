"""Which parameter of a PyTorch network is which weight of the ONNX graph that was made of it.

On the way to the graph a weight may be transposed, and BatchNorm folded into it multiplies each
output channel by a factor (Jacob et al., 2018, arXiv:1712.05877, section 3.2). Neither changes the
integers of a weight with a scale for each output channel, but for a sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError
from .layers import QuantLayer, quantizable_layers
from .weights import QuantizedWeight, dequantize

if TYPE_CHECKING:
    import onnx

    Array = np.ndarray[Any, Any]

TOLERANCE = 1e-4
"""Permitted difference of a channel, relative to its length: rounding of fp32."""


@dataclass(frozen=True)
class TrainedWeight(QuantizedWeight):
    """The integers of a parameter, in its own orientation; they are symmetric around 0.

    Attributes:
        parameter: its name in the network.
        channel_axis: of the output channels, which the scales belong to.
    """

    parameter: str
    channel_axis: int


@dataclass(frozen=True)
class Fit:
    """How a weight of a graph follows from a parameter.

    Attributes:
        channel_axis: of the output channels in the parameter.
        factors: of the output channels, float64 (channels,); 0 where the graph has only zeros.
    """

    channel_axis: int
    factors: Array

    @property
    def is_plain(self) -> bool:
        """Whether the weight is the parameter itself, or its transpose."""
        return bool((np.abs(self.factors - 1) <= TOLERANCE).all())


def fit(found: Array, channel_axis: int, parameter: Array) -> Fit | None:
    """Return how a weight of a graph follows from a parameter; None when it does not.

    Args:
        found: the weight in the graph.
        channel_axis: of its output channels.
        parameter: of the network, in its own orientation.
    """
    axes = [channel_axis] if parameter.ndim != 2 else [channel_axis, 1 - channel_axis]
    for axis in axes:
        moved = np.moveaxis(parameter, axis, channel_axis)
        if moved.shape != found.shape:
            continue
        wanted, given = _rows(found, channel_axis), _rows(moved, channel_axis)
        energy = np.einsum("ij,ij->i", given, given)
        products = np.einsum("ij,ij->i", wanted, given)
        # A channel of zeros in both follows with any factor.
        factors = np.where(energy > 0, products / np.where(energy > 0, energy, 1), 1.0)
        rest = np.linalg.norm(wanted - factors[:, None] * given, axis=1)
        if (rest <= TOLERANCE * np.linalg.norm(wanted, axis=1)).all():
            return Fit(axis, factors)
    return None


def graph_weights(model: onnx.ModelProto, layers: Iterable[QuantLayer]) -> dict[str, Array]:
    """Return the weights of layers by the names of their initializers."""
    from onnx import numpy_helper

    wanted = {layer.weight for layer in layers}
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in wanted
    }


def find(layer: QuantLayer, found: Array, parameters: Mapping[str, Array]) -> tuple[str, Fit] | str:
    """Return the parameter that a layer's weight follows from, or why there is none.

    By name where the layer has that of a module, or of a parameter; else the one parameter that is
    its weight, as nothing else tells of projections that PyTorch keeps together (``in_proj_weight``
    of attention).

    Args:
        layer: of the graph.
        found: its weight there.
        parameters: of the network, by name.
    """
    for name in (layer.weight, f"{layer.name}.weight"):
        if name in parameters:
            follows = fit(found, layer.channel_axis, parameters[name])
            if follows is not None:
                return name, follows
    same = []
    for name, parameter in parameters.items():
        if parameter.size == found.size and parameter.ndim == found.ndim:
            follows = fit(found, layer.channel_axis, parameter)
            if follows is not None and follows.is_plain:
                same.append((name, follows))
    if len(same) == 1:
        return same[0]
    if same:
        return f"several parameters are its weight: {same[0][0]}, {same[1][0]}"
    return "its weight in the graph follows from no parameter of the network"


def folded_weights(
    graph: onnx.ModelProto, trained: Mapping[str, TrainedWeight]
) -> dict[str, QuantizedWeight]:
    """Return trained weights as the graph of the finished network has them.

    BatchNorm that the export folded into a layer has multiplied its output channels: the integers
    are the same, the scales take the factors, and a negative one turns the signs of its channel.

    Args:
        graph: the prepared ONNX graph of the network after :meth:`.qat.QuantizationAware.finish`.
        trained: what that returned beside the network.

    Returns:
        weights in the orientation of the graph, by the names of its layers; those that share a
        trained parameter without being in the plan are among them.

    Raises:
        ModelError: a trained layer is not in the graph, or its weight there is another one.
    """
    layers = quantizable_layers(graph)
    weights = graph_weights(graph, layers)
    by_parameter = {item.parameter: item for item in trained.values()}
    arrays = {name: dequantize(item, item.channel_axis) for name, item in by_parameter.items()}
    found: dict[str, QuantizedWeight] = {}
    missing = {item.parameter: name for name, item in trained.items()}
    for layer in layers:
        match = find(layer, weights[layer.weight], arrays)
        if isinstance(match, str):
            continue
        parameter, follows = match
        item = trained.get(layer.name, by_parameter[parameter])
        if item.parameter != parameter:
            item = by_parameter[parameter]
        if follows.channel_axis == item.channel_axis:
            found[layer.name] = _folded(item, follows, layer.channel_axis)
            missing.pop(parameter, None)
    for parameter, name in missing.items():
        raise ModelError(
            f"layer {name!r}: no weight of the ONNX graph follows from {parameter!r} as it was"
            " trained; expected one that is it times a factor for each output channel",
            hint="export the network that was finished, and do not equalise its layers",
        )
    return found


def _folded(weight: TrainedWeight, follows: Fit, channel_axis: int) -> QuantizedWeight:
    factors = follows.factors
    values = np.moveaxis(weight.values, weight.channel_axis, channel_axis)
    shape = [1] * values.ndim
    shape[channel_axis] = -1
    signs = np.sign(factors).astype(np.int8).reshape(shape)
    scale = np.where(factors != 0, np.abs(factors) * weight.scale, weight.scale)
    return QuantizedWeight(
        np.ascontiguousarray(values * signs), scale.astype(np.float32), weight.bits
    )


def _rows(weight: Array, channel_axis: int) -> Array:
    moved = np.moveaxis(weight, channel_axis, 0)
    return moved.reshape(len(moved), -1).astype(np.float64)
