"""Opens ONNX files with quantized weights so that they run at full speed.

A file may hold weights as INT2, INT4 or INT8 with a DequantizeLinear between them and the layer
(ONNX operator specification, opsets 21 and 25). ONNX Runtime leaves that operator where it is, to
run it at every call, because an integer kernel might take it up; or it makes its own MatMulNBits of
it and a MatMul, which rounds the activations to 8 bits. Here, when a file is opened,

- weights of a layer that computes in float32 are folded into float32 weights, and
- weights below 8 bits of a layer whose activations are quantized become INT8 with the same values,
  of which ONNX Runtime makes its integer kernels.

The file on disk stays as it is. ``docs/packed-weights.md`` has the session options for those who
use ONNX Runtime by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ModelError
from .base import first_line, import_framework
from .onnx_scan import Scan, ScannedNode, scan

_FOLD = "session.disable_quant_qdq"
_FOLDER = "session.model_external_initializers_file_folder_path"

_FLOATS = {1: np.dtype(np.float32), 10: np.dtype(np.float16)}
"""By ``TensorProto.DataType``: what weights are folded to."""
_WIDER = {
    21: np.dtype(np.uint8),  # UINT4
    22: np.dtype(np.int8),  # INT4
    25: np.dtype(np.uint8),  # UINT2
    26: np.dtype(np.int8),  # INT2
}
"""By ``TensorProto.DataType`` below 8 bits: the type of 8 bits that has the same values."""

# What ONNX Runtime's transformer of QDQ graphs puts on integers (qdq_selectors.cc, for the CPU):
# operators past which it moves Quantize- and DequantizeLinear,
_TRANSPARENT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
# operators that select from one quantized tensor,
_SELECTING = frozenset({"Gather", "Slice", "Split", *_TRANSPARENT})
# what may stand between an operator and its QuantizeLinear,
_BETWEEN = frozenset({"Relu", "Clip", *_TRANSPARENT})
# and operators on integers that return float32, too.
_FLOAT_OUTPUT = frozenset({"MatMul", "Gemm"})


class _Change(NamedTuple):
    """What becomes of the DequantizeLinear at a place in the main graph."""

    place: int
    fold: bool


@contextmanager
def full_speed(path: Path, settings: Any, runtime: Any, label: str) -> Iterator[str | bytes]:
    """Say what a session has to be made of, and set the options that it needs.

    A file without quantized weights costs the scan of its structure. Where all its quantization is
    of weights, ONNX Runtime folds them itself: that is faster than to hand them over. Else the
    graph is rewritten in memory.

    Args:
        path: the ONNX file.
        settings: the ``SessionOptions``, to which options and weights are added.
        runtime: the module ``onnxruntime``.
        label: what the user called the file.

    Yields:
        the path of the file, or a serialized model in its place. The session has to be made of it
        in the context: it copies weights, which live no longer.

    Raises:
        ModelError: the file cannot be read, or its quantized weights do not fit together.
        MissingDependencyError: it has to be rewritten, and the package onnx is not installed.
    """
    try:
        found = scan(path)
    except OSError as error:
        raise ModelError(f"{label}: cannot be read: {error.strerror or error}") from error
    if found.dequantizes and not found.quantizes:
        settings.add_session_config_entry(_FOLD, "1")
    changes = _changes(found)
    if not changes:
        yield str(path)
        return
    onnx = import_framework("onnx", "onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
        weights = _rewrite(model, changes, path.parent)
    except Exception as error:
        # Of onnx, protobuf or NumPy: sizes that do not fit, external data outside of the folder.
        raise ModelError(
            f"{label}: its quantized weights cannot be read: {first_line(error)}"
        ) from error
    # Weights go in beside the graph: a serialized model ends at 2 GiB.
    values = [runtime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    settings.add_external_initializers(list(weights), values)
    settings.add_session_config_entry(_FOLDER, str(path.resolve().parent))
    yield model.SerializeToString()


def _changes(found: Scan) -> list[_Change]:
    """Return what to do with each DequantizeLinear of constants beside quantized activations."""
    if not _is_sorted(found.nodes):
        return []
    on_integers = _taken_as_integers(found)
    changes = []
    for index, node in enumerate(found.nodes):
        if not _dequantizes_constants(node, found):
            continue
        values, scale = (found.constants[name] for name in node.inputs[:2])
        if node.outputs[0] not in on_integers and scale in _FLOATS:
            changes.append(_Change(index, fold=True))
        elif values in _WIDER:
            changes.append(_Change(index, fold=False))
    return changes


def _is_sorted(nodes: Iterable[ScannedNode]) -> bool:
    """Whether every tensor is made before it is taken, as ONNX demands; no graph with a loop is."""
    taken: set[str] = set()
    for node in nodes:
        taken.update(name for name in node.inputs if name)
        if not taken.isdisjoint(node.outputs):
            return False
    return True


def _dequantizes_constants(node: ScannedNode, found: Scan) -> bool:
    return (
        node.op_type == "DequantizeLinear"
        and len(node.inputs) > 1
        and len(node.outputs) == 1
        and all(name in found.constants for name in node.inputs if name)
    )


def _taken_as_integers(found: Scan) -> set[str]:
    """Return the tensors that some operator of a sorted graph may take as integers.

    ONNX Runtime puts a kernel on integers in place of an operator whose activations come from a
    DequantizeLinear and go to a QuantizeLinear. Weights that are float32 between these two it even
    quantizes by itself, to 8 bits ("WeightBiasQuantization"), also where it has no such kernel, as
    for ConvTranspose: folded ones would be rounded once more.
    """
    dequantized: set[str] = set()  # activations
    blocked: set[str] = set()
    for node in found.nodes:
        if node.op_type == "DequantizeLinear":
            if not _dequantizes_constants(node, found):
                dequantized.update(node.outputs)
            elif node.blocked:
                blocked.update(node.outputs)
        elif node.op_type in _TRANSPARENT and node.inputs[0] in dequantized:
            dequantized.update(node.outputs)

    consumers: Counter[str] = Counter()
    quantizing: Counter[str] = Counter()
    on_integers: set[str] = set()
    for node in reversed(found.nodes):
        outputs = [name for name in node.outputs if name]
        inputs = list(dict.fromkeys(name for name in node.inputs if name))
        # Of sorted nodes all that take these outputs were visited.
        goes_on_quantized = all(0 < consumers[name] == quantizing[name] for name in outputs)
        kind = node.op_type
        consumers.update(inputs)
        if kind == "QuantizeLinear" or (kind in _BETWEEN and goes_on_quantized):
            quantizing.update(inputs)
        if kind in _SELECTING and goes_on_quantized:
            on_integers.update(inputs)
        elif kind in _TRANSPARENT:
            on_integers.update(inputs if not on_integers.isdisjoint(outputs) else ())
        elif kind in _FLOAT_OUTPUT or goes_on_quantized:
            quantized = sum(name in dequantized for name in inputs)
            on_integers.update(name for name in inputs if quantized > (name in dequantized))
            if kind == "MatMul":  # no kernel on integers has a scale for each block
                on_integers -= blocked.intersection(inputs)
    return on_integers


def _rewrite(
    model: Any, changes: Iterable[_Change], folder: Path
) -> dict[str, np.ndarray[Any, Any]]:
    """Change the nodes of a model, and give it initializers without data.

    What they replace stays in the graph: ONNX Runtime drops what nobody takes.

    Returns:
        the data of the new initializers by name.
    """
    from onnx import external_data_helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights: dict[str, np.ndarray[Any, Any]] = {}

    def read(name: str) -> np.ndarray[Any, Any]:
        tensor = tensors[name]
        if external_data_helper.uses_external_data(tensor):
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        array = numpy_helper.to_array(tensor)
        return array.astype(_WIDER.get(tensor.data_type, array.dtype))

    folded = []
    for index, fold in changes:
        node = model.graph.node[index]
        if fold:
            weights[node.output[0]] = _dequantize(node, [read(name) for name in node.input if name])
            folded.append(index)
            continue
        values, scale, zero_point = (*node.input, "")[:3]
        wide, zeros = f"{values}/8bit", f"{zero_point or scale}/8bit"
        weights[wide] = read(values)
        # The integer kernel of Gemm is used only if there is a zero point, even if it is 0.
        empty = np.zeros(tensors[scale].dims, weights[wide].dtype)
        weights[zeros] = read(zero_point) if zero_point else empty
        node.input[:] = [wide, scale, zeros]
    for index in reversed(folded):
        del model.graph.node[index]
    for name, array in weights.items():
        _declare(model, name, array)
    return weights


def _dequantize(node: Any, inputs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Compute a DequantizeLinear: with one scale, one along an axis, or one a block of the axis.

    Args:
        node: the node, for its attributes.
        inputs: values, scale and, if there are any, zero points.

    Returns:
        ``(values - zero points) * scale``, shaped like the values.
    """
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    values, scale, *zero_points = inputs
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)

    def spread(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if block:  # the last one may be shorter
            return np.repeat(array, block, axis).take(range(values.shape[axis]), axis)
        if array.size == 1:
            return array.reshape(())
        return np.expand_dims(array, [i for i in range(values.ndim) if i != axis % values.ndim])

    offset = values
    if zero_points:
        offset = values.astype(np.int32) - spread(zero_points[0]).astype(np.int32)
    real = offset.astype(np.float32) * spread(scale).astype(np.float32)
    dtype = _FLOATS.get(attributes.get("output_dtype", 0), scale.dtype)
    return np.ascontiguousarray(real.astype(dtype))


def _declare(model: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    """Add an initializer whose data the session is given."""
    from onnx import TensorProto, helper

    tensor = model.graph.initializer.add()
    tensor.name = name
    tensor.dims.extend(array.shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "memory"
