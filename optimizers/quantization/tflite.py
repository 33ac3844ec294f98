"""Quantized TensorFlow Lite files, from float ones, by ai-edge-quantizer.

The format is that of the TensorFlow Lite 8-bit quantization specification
(https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec): weights in
int8 or int4 with one scale an output channel and the zero point 0, activations in int8 with one
scale and zero point a tensor, biases in int32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import InputError, UsageError
from ...exporters.base import converting
from ...exporters.tflite_files import finish
from ...frameworks.base import import_framework
from ...runtime.atomic import replacing
from ...specs.hints import did_you_mean
from .calibration import check_batches
from .tflite_graph import LAYERS, FloatGraph, TfliteLayer, graph_layers, read_tflite

Array = np.ndarray[Any, Any]

Batch = Mapping[str, Array]

BITS = (4, 8, 16, 32)
"""Of weights that LiteRT 2.3 runs. It has 2-bit ones for FULLY_CONNECTED with activations that are
quantized anew at every call; its 2-bit CONV_2D, which the library writes, crashes the process."""


def tflite_layers(path: Path) -> tuple[TfliteLayer, ...]:
    """Return the layers of a float32 file that can be quantized, in graph order.

    Raises:
        ModelError: the file is something else, damaged, or quantized already.
        MissingDependencyError: LiteRT is not installed.
    """
    return graph_layers(FloatGraph(read_tflite(path, str(path)), str(path)))


def quantize_tflite(
    path: Path,
    out: Path,
    bits: Mapping[str, int],
    calibration: Sequence[Batch] = (),
    activations: Literal[8, 32] | Mapping[str, Literal[8, 32]] = 8,
) -> None:
    """Write a file with quantized weights and, with 8-bit activations, integer kernels.

    With 8-bit activations, layers of 8 and 4 bits compute in integers, and so do operators without
    weights that take the results of such layers only; the ranges of activations are the smallest
    and the largest value over all of ``calibration``. With 32, weights are dequantized to float32
    when the file is run. Layers of 16 bits (float16 weights) and of 32 bits compute in float32.
    Inputs and outputs of the file stay as they are. The same arguments give the same bytes.

    Args:
        path: a float32 ``.tflite`` file.
        out: where to write; may exist, and then is replaced.
        bits: bits of the weights by layer name: 4, 8, 16 or 32. A layer that is not named stays
            float32.
        calibration: batches of inputs by name, for activations of 8 bits. Where the file fixes the
            batch to 1, they are run sample by sample.
        activations: 8 or 32, of all layers or by the layer's name; of one that is not named, 32.

    Raises:
        UsageError: there is no such layer, or TensorFlow Lite has no such weights for its operator.
        InputError: a calibration batch is missing, is not finite, or does not fit the inputs.
        ModelError: the file is something else, quantized already, or one that the library refuses.
        MissingDependencyError: ai-edge-quantizer is not installed.
    """
    import_framework("ai_edge_quantizer", "quantize-tflite")
    label = str(path)
    content = read_tflite(path, label)
    graph = FloatGraph(content, label)
    layers = graph_layers(graph)
    wanted = _wanted(layers, bits, activations, label)
    if not wanted:
        raise UsageError(
            f"{label}: found no layer to quantize; expected one of 4, 8 or 16 bits",
            hint=f"its layers: {', '.join(layer.name for layer in layers) or 'none'}",
        )
    recipe = _recipe(graph, wanted)
    needs_ranges = any(in_integers for _, in_integers in wanted.values())
    feeds = list(_feeds(graph, calibration)) if needs_ranges else []
    with converting(label, "ai-edge-quantizer"):
        quantized = _quantize(content, recipe, graph.signature, feeds)
        with replacing(out) as temporary:
            finish(graph.mended(quantized), temporary, {}, {})


def _wanted(
    layers: Sequence[TfliteLayer],
    bits: Mapping[str, int],
    activations: int | Mapping[str, int],
    label: str,
) -> dict[str, tuple[int, bool]]:
    """Return what changes in each operator, by scope: bits, and whether it computes in integers."""
    known = {layer.name: layer for layer in layers}
    by_name = activations if isinstance(activations, Mapping) else dict.fromkeys(bits, activations)
    for name, width in bits.items():
        found = by_name.get(name, 32)
        if found not in (8, 32):
            raise UsageError(f"{label}: activations: found {found} bits; expected 8 or 32")
        if name not in known:
            raise UsageError(
                f"{label}: no layer {name!r}",
                hint=did_you_mean(name, known) or f"it has {', '.join(known)}",
            )
        possible = [one for one in BITS if _is_possible(known[name].op, one, found)]
        if width not in possible:
            raise UsageError(
                f"{label}: layer {name!r}: found {width} bits; for {known[name].op} with"
                f" {found}-bit activations, tflite has weights of"
                f" {', '.join(map(str, possible))} bits"
            )
    wanted: dict[str, tuple[int, bool]] = {}
    for layer in layers:
        width = bits.get(layer.name, 32)
        change = (width, width < 16 and by_name.get(layer.name, 32) == 8)
        if wanted.setdefault(layer.scope, change) != change:
            raise UsageError(
                f"{label}: layer {layer.name!r} and another have outputs of the same name,"
                f" {layer.scope!r}: found {wanted[layer.scope][0]} and {width} bits; expected the"
                " same, with the same activations"
            )
    return {scope: change for scope, change in wanted.items() if change[0] != 32}


def _is_possible(op: str, bits: int, activations: int) -> bool:
    """Whether ai-edge-quantizer knows kernels of LiteRT for such weights."""
    from ai_edge_quantizer import algorithm_manager, qtyping

    if bits == 32:
        return True
    name = "CONV_2D_TRANSPOSE" if op == "TRANSPOSE_CONV" else op
    algorithm, config = _config(op, bits, activations)
    try:
        algorithm_manager.check_op_quantization_config(
            algorithm, qtyping.TFLOperationName(name), config
        )
    except ValueError:
        return False
    return True


def _config(op: str, bits: int, activations: int) -> tuple[Any, Any]:
    """Return algorithm and configuration of the library for weights of some bits."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.quantizer import AlgorithmName

    tensor, precision = qtyping.TensorQuantizationConfig, qtyping.ComputePrecision
    if bits == 16:
        half = tensor(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half,
            compute_precision=precision.FLOAT,
            explicit_dequantize=True,
        )
        return AlgorithmName.FLOAT_CASTING, config
    in_integers = activations == 8
    granularity = qtyping.QuantGranularity.CHANNELWISE
    if in_integers and op == "BATCH_MATMUL":  # LiteRT's kernel returns 0 for a scale a channel
        granularity = qtyping.QuantGranularity.TENSORWISE
    config = qtyping.OpQuantizationConfig(
        activation_tensor_config=tensor(num_bits=8, symmetric=False) if in_integers else None,
        weight_tensor_config=tensor(num_bits=bits, symmetric=True, granularity=granularity),
        compute_precision=precision.INTEGER if in_integers else precision.FLOAT,
        explicit_dequantize=not in_integers,
    )
    # On a CNN, the library's searches for smaller scales (OCTAV, MSE) left larger errors at 4 bits.
    return AlgorithmName.MIN_MAX_UNIFORM_QUANT, config


def _recipe(graph: FloatGraph, wanted: Mapping[str, tuple[int, bool]]) -> Any:
    """Return the library's recipe: a rule for each operator, and none for all others."""
    from ai_edge_quantizer import qtyping, recipe_manager
    from ai_edge_quantizer.quantizer import AlgorithmName

    recipe = recipe_manager.RecipeManager()
    in_integers: set[int] = set()  # tensors
    for operator in graph.operators:
        scope = graph.scope(operator)
        bits, is_integer = wanted.get(scope, (None, False))
        if bits is None and in_integers:
            taken = [
                index
                for index in operator.inputs
                if index != -1 and graph.is_float(index) and not graph.is_constant(index)
            ]
            is_layer = graph.op(operator) in LAYERS
            if taken and not is_layer and in_integers.issuperset(taken):
                bits, is_integer = 8, True
        if bits is None:
            continue
        if is_integer:
            in_integers.update(index for index in operator.outputs if graph.is_float(index))
        algorithm, config = _config(graph.op(operator), bits, 8 if is_integer else 32)
        # What the library cannot quantize it leaves as it is; _wanted has looked at the layers.
        recipe.add_quantization_config(
            f"^{re.escape(scope)}$", qtyping.TFLOperationName.ALL_SUPPORTED, config, algorithm
        )
    # The rule of the last operator would hold for the outputs, too, as they have its scope.
    for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        recipe.add_quantization_config(".*", side, None, AlgorithmName.NO_QUANTIZE)
    return recipe


def _feeds(graph: FloatGraph, calibration: Sequence[Batch]) -> Iterator[Batch]:
    """Yield calibration batches that the file takes: sample by sample where it fixes the batch."""
    check_batches(calibration)
    from ai_edge_litert import schema_py_generated as schema

    kinds = {value: key.lower() for key, value in vars(schema.TensorType).items()}
    for number, batch in enumerate(calibration):
        if batch.keys() != graph.inputs.keys():
            raise InputError(
                f"calibration batch {number}: found the inputs {', '.join(sorted(batch))};"
                f" expected {', '.join(sorted(graph.inputs))}"
            )
        single = False
        for name, array in batch.items():
            tensor = graph.inputs[name]
            sizes = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
            shape, kind = tuple(int(size) for size in sizes), kinds[tensor.type]
            single |= shape[:1] == (1,) != array.shape[:1]
            fits = len(shape) == array.ndim and all(
                size in (-1, found)
                for size, found in zip(shape[single:], array.shape[single:], strict=True)
            )
            if not fits or array.dtype.name != kind:
                shown = ", ".join("any" if size == -1 else str(size) for size in shape)
                raise InputError(
                    f"calibration batch {number}: {name}: found {array.dtype.name}"
                    f" {tuple(array.shape)}; expected {kind} ({shown})"
                )
        if not single:
            yield dict(batch)
            continue
        for i in range(max(len(array) for array in batch.values())):
            yield {
                name: array[i : i + 1] if len(array) > 1 else array for name, array in batch.items()
            }


def _quantize(content: bytes, recipe: Any, signature: str, feeds: list[Batch]) -> bytes:
    from ai_edge_quantizer import calibrator, quantizer
    from ai_edge_quantizer.utils import qsv_utils

    ranges = None
    if feeds:
        # By default the library takes a moving average, which depends on the order of the batches
        # and cuts off what is far from the mean.
        work = calibrator.Calibrator(
            content, num_threads=1, qsv_update_func=qsv_utils.min_max_update
        )
        work.calibrate({signature: feeds}, recipe)
        ranges = work.get_model_qsvs()
    made = quantizer.Quantizer(content, recipe.get_quantization_recipe()).quantize(
        ranges, enable_progress_report=False, enable_progress_bar=False
    )
    return bytes(made.quantized_model)
