"""What quantization starts from: a float graph in a form that all steps can rely on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ...exporters.base import converting
from ...exporters.onnx_files import deserialize, optimize, read_model
from ...frameworks.base import first_line, import_framework
from ...frameworks.layers import LARGEST_ONNX
from .folding import fold_affine, fold_bias

if TYPE_CHECKING:
    import onnx

LOWEST_OPSET = 13
"""The first in which QuantizeLinear and DequantizeLinear take a scale per channel."""

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_QUANTIZED_PREFIXES = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger")
_QUANTIZED_BLOCKS = ("MatMulNBits", "MatMulBnb4", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


def prepare(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Return a float model with folded BatchNorm, named nodes, and shapes as far as they are known.

    Constants are folded into initializers, BatchNorm into the layer before it, in whatever form a
    converter has left it; functions are inlined. Names of weights stay, as the layers are named by
    them, and so do the names and the free sizes of inputs and outputs. A model of 2 GiB and more
    does not fit: a protobuf message, in which all of it has to be at once, ends there.

    Args:
        source: an ONNX file, or a model in memory, which stays as it is.

    Raises:
        ModelError: the file cannot be read, is quantized already, or is too large.
        MissingDependencyError: the package onnx is not installed.
    """
    onnx = import_framework("onnx", "onnx")
    import_framework("onnxscript", "onnx")
    from onnx_ir.passes import common
    from onnx_ir.serde import serialize_model

    label = "the ONNX model" if not isinstance(source, str | Path) else str(source)
    if isinstance(source, str | Path):
        model = read_model(Path(source), label)
    else:
        model = deserialize(source)
    _refuse_quantized(model, label)
    _refuse_large(model, label)
    with converting(label, "onnxscript's optimizer"):
        optimize(model, keep_batch_norm=False)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.RemoveInitializersFromInputsPass()(model)
        common.RemoveUnusedNodesPass()(model)
        _name_nodes(model)
        common.TopologicalSortPass()(model)
    proto = at_opset(serialize_model(model), LOWEST_OPSET, label)
    fold_affine(proto)
    try:
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:
        raise ModelError(f"{label}: shape inference fails: {first_line(error)}") from error
    fold_bias(proto)
    return proto


def at_opset(model: onnx.ModelProto, lowest: int, label: str) -> onnx.ModelProto:
    """Return a model of the opset ``lowest`` or a later one: itself, or a converted copy.

    Raises:
        ModelError: an operator of it cannot be converted.
    """
    from onnxscript import version_converter

    found = opset_of(model)
    if found >= lowest:
        return model
    with converting(label, "ONNX's version converter"):
        converted = deserialize(model)
        version_converter.convert_version(converted, target_version=lowest, fallback=True)
        for node in converted.graph:
            node.version = None
        reached = converted.opset_imports.get("", 0)
        if reached < lowest:
            raise ModelError(
                f"{label}: its opset is {found}, which cannot be converted to {lowest}",
                hint=f"export it with opset {lowest} or later, or choose weights of 8 bits or more",
            )
        _raise_ir_version(converted)
        _name_nodes(converted)
        from onnx_ir.serde import serialize_model

        return serialize_model(converted)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses."""
    versions = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    return int(max(versions, default=0))


def _raise_ir_version(model: Any) -> None:
    from onnx import helper

    opsets = [helper.make_opsetid(*opset) for opset in model.opset_imports.items()]
    lowest = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.ir_version = max(model.ir_version, lowest)


def _refuse_quantized(model: Any, label: str) -> None:
    import onnx_ir

    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        kind = node.op_type
        if kind in (*_QUANTIZED, *_QUANTIZED_BLOCKS) or kind.startswith(_QUANTIZED_PREFIXES):
            raise ModelError(
                f"{label}: is quantized already: it has the operator {kind}"
                f" ({node.name or node.outputs[0].name}); expected a float model",
                hint="start from the float32 model that it was made of",
            )


def _refuse_large(model: Any, label: str) -> None:
    size = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if size > LARGEST_ONNX:
        raise ModelError(
            f"{label}: {size >> 20} MiB of weights; quantization needs a model below 2 GiB",
            hint="quantize its parts, or compress it first",
        )


def _name_nodes(model: Any) -> None:
    """Give every node a name of its own."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph):
        name = node.name or f"{node.op_type}_{index}"
        if name in seen:
            name = next(f"{name}_{n}" for n in range(1, 1 << 30) if f"{name}_{n}" not in seen)
        node.name = name
        seen.add(name)
