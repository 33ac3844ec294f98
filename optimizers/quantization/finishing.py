"""The last steps of a quantized graph: what keeps float layers float, and the file small."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import __version__
from .stored_weights import clone

if TYPE_CHECKING:
    import onnx


def keep_apart(model: onnx.ModelProto, layers: set[str]) -> None:
    """Keep layers float that stand between quantized tensors.

    ONNX Runtime, when it opens a file, quantizes the float weight of a Conv, ConvTranspose or Gemm
    between a DequantizeLinear and a QuantizeLinear (its WeightBiasQuantization), with one scale for
    the whole of it: the precision that the plan gave such a layer would be lost. A Max of one
    tensor, which is a copy, stands between.
    """
    from onnx import helper

    dequantized = {
        name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    nodes = []
    for node in model.graph.node:
        if node.name in layers and node.input[0] in dequantized:
            copy = f"{node.name}_float"
            nodes.append(helper.make_node("Max", [node.input[0]], [copy]))
            node.input[0] = copy
        nodes.append(clone(node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def finished(model: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Make a quantized graph, in place, ready to be written."""
    from onnx import helper

    model.producer_name, model.producer_version = "ingot", __version__
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    _share_constants(model)
    _shorten_names(model, original)
    # Shapes and scopes served to get here; in a small file they weigh as much as its weights.
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    lowest = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(model.ir_version, lowest)
    return model


def _share_constants(model: onnx.ModelProto) -> None:
    """Keep one of equal zero points and scales: there are several of them a layer."""
    from onnx import numpy_helper

    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    kept = []
    quantizing = ("QuantizeLinear", "DequantizeLinear")
    parameters = {
        name for node in model.graph.node if node.op_type in quantizing for name in node.input[1:]
    }
    for tensor in model.graph.initializer:
        if tensor.name in parameters:
            key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            renamed[tensor.name] = first.setdefault(key, tensor.name)
            if renamed[tensor.name] != tensor.name:
                continue
        kept.append(clone(tensor))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        if node.op_type in quantizing:
            for place, name in enumerate(node.input):
                node.input[place] = renamed.get(name, name)


_SUFFIXES = {
    "_QuantizeLinear_Output": "_q",
    "_DequantizeLinear_Output": "_dq",
    "_QuantizeLinear_Input": "_f",
    "_zero_point": "_zero",
    "_quantized": "_q",
}


def _shorten_names(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Shorten what ONNX Runtime's quantizer calls tensors, and leave out what it calls nodes.

    In a network of some hundred kilobytes they took a tenth of the file.
    """
    graph = model.graph
    kept = {value.name for value in (*original.graph.input, *original.graph.initializer)}
    kept |= {name for node in original.graph.node for name in node.output}
    names = {tensor.name for tensor in graph.initializer}
    names |= {name for node in graph.node for name in node.output}
    renamed: dict[str, str] = {}
    for name in sorted(names - kept):
        short = name
        for suffix, instead in _SUFFIXES.items():
            short = short.replace(suffix, instead)
        if short != name and short not in names | kept:
            renamed[name] = short
            names.add(short)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = ""
