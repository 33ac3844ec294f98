"""Quantized ONNX graphs: packed integer weights, and QuantizeLinear / DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError, UsageError
from ...frameworks.base import first_line
from ...frameworks.onnx import import_onnxruntime
from ...specs.hints import did_you_mean
from .calibration import Ranges
from .finishing import finished, keep_apart
from .layers import QuantLayer, attribute, quantizable_layers
from .plan import FLOAT, Plan, Precision
from .prepare import at_opset
from .regions import Regions, effective, regions
from .stored_weights import WeightWriter, clone, taken_names
from .weights import QuantizedWeight, quantize_weight, rescaled

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

_OPSETS = {2: 25, 4: 21, 8: 13}
"""The first opset with integers of so many bits."""


def quantize(
    model: onnx.ModelProto,
    plan: Plan,
    ranges: Ranges | None,
    *,
    reduce_range: bool = False,
    weights: Mapping[str, QuantizedWeight] | None = None,
    activation_scales: Mapping[str, float] | None = None,
) -> onnx.ModelProto:
    """Return a quantized copy of a prepared model (see :func:`.prepare.prepare`).

    Integer weights are stored packed, with a DequantizeLinear before their layer; float16 weights
    with a Cast. A layer with uint8 activations has a QuantizeLinear / DequantizeLinear pair before
    it, a bias of int32, and, where ONNX Runtime needs one to run it on integers, a pair behind it;
    so have the operators between such layers. The scheme is that of Jacob et al. 2018,
    arXiv:1712.05877, with a scale an output channel. ``ConvTranspose``, and products for which ONNX
    Runtime has no integer kernel, keep float activations whatever the plan says.

    Args:
        model: prepared.
        plan: precisions by the name of the layer.
        ranges: of the activations; not needed when all of them stay float.
        reduce_range: weights of 7 instead of 8 bits, for processors whose 8-bit products saturate.
        weights: integers to write as they are, by layer: those that training has found.
        activation_scales: the step of a layer's input, by layer, where training has found it.

    Raises:
        UsageError: the plan names a layer that is not there, or has other bits than ``weights``.
        ModelError: the opset cannot be raised to one that has these types, or a weight is NaN.
    """
    layers = {layer.name: layer for layer in quantizable_layers(model)}
    precisions = _effective_plan(plan, layers, model)
    chosen = [layers[name] for name in layers if precisions[name] != FLOAT]
    if not chosen:
        return finished(clone(model), model)
    with_activations = [layer for layer in chosen if precisions[layer.name].activation == 8]
    limits = _limits(model, with_activations, ranges, activation_scales or {})
    opset = max(_OPSETS.get(precisions[layer.name].weight, 13) for layer in chosen)
    quantized = at_opset(clone(model), opset, "the ONNX model")
    packed = integer_weights(model, precisions, reduce_range=reduce_range, weights=weights)
    writer = WeightWriter(quantized)
    for layer in chosen:
        weight = packed.get(layer.name)
        if weight is None:
            writer.write_float16(layer)
            continue
        if layer in with_activations:
            weight = _fitting_bias(layer, weight, limits, quantized)
        writer.write_integers(layer, weight, is_fused=layer in with_activations)
    writer.finish()
    if with_activations:
        quantized = _with_activations(quantized, model, with_activations, limits)
        apart = {layer.node for layer in layers.values() if layer not in with_activations}
        keep_apart(quantized, apart)
    return finished(quantized, model)


def integer_weights(
    model: onnx.ModelProto,
    plan: Plan,
    *,
    reduce_range: bool = False,
    weights: Mapping[str, QuantizedWeight] | None = None,
) -> dict[str, QuantizedWeight]:
    """Return the integers that :func:`quantize` writes, by layer; those of ``weights`` as given.

    Raises:
        UsageError: ``weights`` has other bits or another shape than the plan and the model.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for layer in quantizable_layers(model):
        precision = plan.get(layer.name, FLOAT)
        if precision.is_float:
            continue
        given = (weights or {}).get(layer.name)
        if given is None:
            try:
                array = numpy_helper.to_array(tensors[layer.weight])
                found[layer.name] = quantize_weight(
                    array, precision.weight, layer.channel_axis, reduce_range=reduce_range
                )
            except ModelError as error:
                raise ModelError(f"{layer.name}: {layer.weight}: {error.message}") from error
            continue
        if given.bits != precision.weight or given.values.shape != layer.shape:
            raise UsageError(
                f"{layer.name}: trained weights of {given.bits} bits and shape"
                f" {given.values.shape}; expected {precision.weight} bits and {layer.shape}"
            )
        found[layer.name] = given
    return found


def _effective_plan(
    plan: Plan, layers: Mapping[str, QuantLayer], model: onnx.ModelProto
) -> dict[str, Precision]:
    for name in plan:
        if name not in layers:
            raise UsageError(
                f"the plan names a layer {name!r}, which the model does not have",
                hint=did_you_mean(name, layers) or None,
            )
    return {name: effective(layer, plan.get(name, FLOAT), model) for name, layer in layers.items()}


def _limits(
    model: onnx.ModelProto,
    layers: Sequence[QuantLayer],
    ranges: Ranges | None,
    scales: Mapping[str, float],
) -> dict[str, tuple[float, float]]:
    """Return the range of each activation that is quantized: calibrated, or by a trained step.

    A trained step is that of an unsigned range from 0 where nothing negative was seen, else of a
    range as far below 0 as above it. Of layers that share their input, the largest step counts.
    """
    tensors = regions(model, layers).tensors
    if not tensors:
        return {}
    if ranges is None:
        raise UsageError(
            f"the plan quantizes the activations of {layers[0].name!r} and"
            f" {len(layers) - 1} more layers, but they are not calibrated",
            hint="calibrate(model, batches), or activations of 32 bits",
        )
    missing = next((name for name in tensors if name not in ranges.limits), None)
    if missing is not None:
        raise UsageError(f"the activation {missing!r} is not calibrated")
    limits = {name: ranges.limits[name] for name in tensors}
    sources = {node.name: node.input[0] for node in model.graph.node if node.input}
    steps: dict[str, float] = {}
    for layer in layers:
        if layer.name in scales:
            tensor = sources[layer.node]
            steps[tensor] = max(scales[layer.name], steps.get(tensor, 0.0))
    for tensor, step in steps.items():
        is_positive = limits[tensor][0] >= 0
        limits[tensor] = (0.0, 255 * step) if is_positive else (-128 * step, 127 * step)
    return limits


def _fitting_bias(
    layer: QuantLayer,
    weight: QuantizedWeight,
    limits: Mapping[str, tuple[float, float]],
    model: onnx.ModelProto,
) -> QuantizedWeight:
    """Raise scales so far that the bias, in steps of input scale x weight scale, fits int32."""
    from onnx import numpy_helper

    node = next(node for node in model.graph.node if node.name == layer.node)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    if len(node.input) < 3 or node.input[2] not in tensors:
        return weight
    low, high = limits[node.input[0]]
    step = (max(high, 0.0) - min(low, 0.0)) / 255
    if step == 0:
        return weight
    bias = np.abs(numpy_helper.to_array(tensors[node.input[2]]).astype(np.float64))
    bias *= attribute(node, "beta", 1.0)
    least = bias / (step * (np.iinfo(np.int32).max - 1))
    if (weight.scale >= least).all():
        return weight
    return rescaled(weight, np.maximum(weight.scale, least * 1.001), layer.channel_axis)


def _with_activations(
    model: onnx.ModelProto,
    original: onnx.ModelProto,
    layers: Sequence[QuantLayer],
    limits: Mapping[str, tuple[float, float]],
) -> onnx.ModelProto:
    """Quantize activations and biases, by ONNX Runtime's own quantizer.

    It takes layers whose weights are integers already as what they are.

    Raises:
        ModelError: it fails.
    """
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    region = regions(original, layers)
    data = {
        name: TensorData(lowest=np.float32(min(low, 0.0)), highest=np.float32(max(high, 0.0)))
        for name, (low, high) in limits.items()
    }
    # It drops what is clamped, but looks it up before.
    data |= {name: data[result] for name, result in region.clamped.items()}
    split = _split(model, region)
    data |= {copy: data[name] for name, copy in split.items()}
    # Else it would infer the shapes once more, by way of files.
    add_infer_metadata(model)
    inside = set(region.nodes)
    kinds = sorted({node.op_type for node in model.graph.node if node.name in inside})
    try:
        quantizer = QDQQuantizer(
            model,
            per_channel=False,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=list(region.nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=kinds,
            # A product may return floats, which is what most of its consumers want.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
        # It quantizes what was marked before, too: what integers come out of a product.
        outputs = {node.name: node.output[0] for node in original.graph.node if node.output}
        for layer in layers:
            if outputs[layer.node] in data and outputs[layer.node] not in split:
                quantizer.quantize_activation_tensor(outputs[layer.node])
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime's quantizer cannot quantize the activations: {first_line(error)}"
        ) from error
    _merge(quantizer.model.model, split)
    return quantizer.model.model


def _split(model: onnx.ModelProto, region: Regions) -> dict[str, str]:
    """Give integer operators a copy of a float tensor that something else takes as well.

    ONNX Runtime's quantizer would hand the quantized one to all: a residual connection, or an
    output of the network, would lose precision for nothing. The copies by name of the tensor.
    """
    from onnx import helper

    inside = set(region.nodes)
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    infos = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    outside = {value.name for value in graph.output}
    for node in graph.node:
        if node.name not in inside:
            # With the graphs in it.
            outside |= taken_names(helper.make_graph([node], "one", [], []))
    split = {}
    for name in region.tensors:
        producer = producers.get(name)
        # A product may return both; all other operators inside return integers.
        has_float = (
            producer is None
            or producer.name not in inside
            or producer.op_type in ("MatMul", "Gemm")
        )
        if name not in outside or not has_float:
            continue
        split[name] = copy = f"{name}_split"
        for node in graph.node:
            if node.name in inside:
                node.input[:] = [copy if item == name else item for item in node.input]
        graph.node.append(helper.make_node("Identity", [name], [copy], copy))
        info = clone(infos[name])
        info.name = copy
        graph.value_info.append(info)
    return split


def _merge(model: onnx.ModelProto, split: Mapping[str, str]) -> None:
    """Take the copies out again, now that each kind of operator has its own tensor."""
    originals = {copy: name for name, copy in split.items()}
    for node in [node for node in model.graph.node if node.name in originals]:
        model.graph.node.remove(node)
    for node in model.graph.node:
        node.input[:] = [originals.get(name, name) for name in node.input]
