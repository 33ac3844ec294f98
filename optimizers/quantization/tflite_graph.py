"""The main graph of a TensorFlow Lite file: its layers, and what is mended after quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelError
from ...frameworks.base import first_line, import_framework
from ...frameworks.tflite import SIGNATURE, check_file

LAYERS = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "FULLY_CONNECTED",
    "BATCH_MATMUL",
)
"""The operators that have weights; these are their second input."""


@dataclass(frozen=True)
class TfliteLayer:
    """An operator with constant weights in the main graph of a file.

    Attributes:
        index: its place among these, 0-based, in graph order.
        name: of its weight, which converters make of the layer's name in the source.
        op: its type, one of ``LAYERS``.
        shape: of the weight, as the file has it (output channels first, or last if depthwise).
        parameters: numbers in the weight.
        scope: how ai-edge-quantizer knows the operator: by the names of its outputs.
    """

    index: int
    name: str
    op: str
    shape: tuple[int, ...]
    parameters: int
    scope: str


def read_tflite(path: Path, label: str) -> bytes:
    """Return the content of a TensorFlow Lite file.

    Raises:
        ModelError: it cannot be read, or is something else.
        MissingDependencyError: LiteRT is not installed.
    """
    import_framework("ai_edge_litert", "tflite")
    try:
        check_file(path, label)
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{label}: cannot be read: {error.strerror or error}") from error


class FloatGraph:
    """The graph of the main signature of a float32 file.

    Attributes:
        label: what the user called the file.
        signature: the key of the signature.
        tensors: ``TensorT`` of the schema, by index.
        operators: ``OperatorT`` of the schema, in order.
        inputs: the tensors of the signature's inputs, by name.

    Args:
        content: the file.
        label: what the user called it.

    Raises:
        ModelError: the file is damaged, has no signature, or is quantized already.
    """

    def __init__(self, content: bytes, label: str) -> None:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        self.label = label
        try:
            self.model = flatbuffer_utils.read_model_from_bytearray(content)
        except Exception as error:  # struct.error, IndexError, ...: the tables lie outside of it
            raise ModelError(
                f"{label}: a damaged TensorFlow Lite file: {first_line(error)}"
            ) from error
        signatures = {
            entry.signatureKey.decode(): entry for entry in self.model.signatureDefs or ()
        }
        self.signature = SIGNATURE if SIGNATURE in signatures else min(signatures, default="")
        if not signatures:
            raise ModelError(
                f"{label}: found no signature; expected one, which names inputs and outputs",
                hint="export it anew: ingot export MODEL --format tflite",
            )
        entry = signatures[self.signature]
        graph = self.model.subgraphs[entry.subgraphIndex]
        self.tensors, self.operators = graph.tensors, graph.operators
        self.inputs = {item.name.decode(): graph.tensors[item.tensorIndex] for item in entry.inputs}
        self._ends = [(item.name, graph.tensors[item.tensorIndex]) for item in entry.outputs]
        self._opcode = flatbuffer_utils.opcode_to_name
        self._float32 = schema.TensorType.FLOAT32
        half = schema.TensorType.FLOAT16
        for tensor in self.tensors:
            scales = None if tensor.quantization is None else tensor.quantization.scale
            if (scales is not None and len(scales)) or tensor.type == half:
                raise ModelError(
                    f"{label}: quantized already: found"
                    f" {'float16' if tensor.type == half else 'a scale'} for"
                    f" {tensor.name.decode()!r}; expected a file in float32",
                    hint="export its source in fp32: ingot export MODEL --format tflite",
                )

    def op(self, operator: Any) -> str:
        """Return the type of an operator, as the schema's ``BuiltinOperator`` calls it."""
        return str(self._opcode(self.model, operator.opcodeIndex))

    def is_constant(self, index: int) -> bool:
        """Whether a tensor has its data in the file."""
        data = self.model.buffers[self.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def is_float(self, index: int) -> bool:
        """Whether a tensor is float32."""
        return bool(self.tensors[index].type == self._float32)

    def scope(self, operator: Any) -> str:
        """Return what ai-edge-quantizer matches the regular expressions of its recipes with."""
        names = (self.tensors[index].name.decode() for index in operator.outputs if index != -1)
        return "".join(f"{name};" for name in names if name)

    def mended(self, content: bytes) -> bytes:
        """Return a quantized file with what the library takes away: free sizes, shapes at no cost.

        It fixes the sizes of outputs that it dequantizes, and it dequantizes whole tensors only to
        ask for their shape.
        """
        from ai_edge_litert.tools import flatbuffer_utils

        model = flatbuffer_utils.read_model_from_bytearray(content)
        for buffer in model.buffers:
            if isinstance(buffer.data, bytes):  # which would be packed one by one, for minutes
                buffer.data = np.frombuffer(buffer.data, np.uint8)
        key = self.signature.encode()
        entry = next(item for item in model.signatureDefs if item.signatureKey == key)
        graph = model.subgraphs[entry.subgraphIndex]
        made = {item.name: item.tensorIndex for item in entry.outputs}
        for name, tensor in self._ends:
            graph.tensors[made[name]].shapeSignature = tensor.shapeSignature

        names = [self._opcode(model, operator.opcodeIndex) for operator in graph.operators]
        sources = {
            operator.outputs[0]: operator.inputs[0]
            for operator, name in zip(graph.operators, names, strict=True)
            if name == "DEQUANTIZE"
        }
        for operator, name in zip(graph.operators, names, strict=True):
            if name == "SHAPE" and operator.inputs[0] in sources:
                operator.inputs = [sources[operator.inputs[0]]]
        taken = {index for operator in graph.operators for index in operator.inputs}
        taken.update(graph.outputs)
        graph.operators = [
            operator
            for operator, name in zip(graph.operators, names, strict=True)
            if name != "DEQUANTIZE" or operator.outputs[0] in taken
        ]
        return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def graph_layers(graph: FloatGraph) -> tuple[TfliteLayer, ...]:
    """Return the operators of a graph that have constant float32 weights, in order."""
    layers: list[TfliteLayer] = []
    names: dict[str, int] = {}
    for operator in graph.operators:
        op = graph.op(operator)
        index = operator.inputs[1] if op in LAYERS else -1
        if index < 0 or not graph.is_constant(index) or not graph.is_float(index):
            continue
        weight = graph.tensors[index]
        shape = tuple(int(size) for size in weight.shape)
        name = _layer_name(weight.name.decode())
        names[name] = names.get(name, 0) + 1
        unique = name if names[name] == 1 else f"{name}#{names[name]}"
        layers.append(
            TfliteLayer(len(layers), unique, op, shape, math.prod(shape), graph.scope(operator))
        )
    return tuple(layers)


def _layer_name(weight: str) -> str:
    """Return the layer of a weight: ``model/conv`` of ``model/conv/Conv2D``, ``fc`` of ``fc;1``."""
    name = weight.partition(";")[0]
    return name.rpartition("/")[0] or name
