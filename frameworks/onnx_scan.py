"""Finds the quantized tensors of an ONNX file without reading its weights, nor importing onnx.

It walks the protocol buffers wire format (https://protobuf.dev/programming-guides/encoding/) of the
messages of ``onnx.proto3``, and skips by their length what it does not need: weights above all.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Field numbers of ModelProto, FunctionProto, GraphProto, NodeProto and TensorProto.
_GRAPH, _FUNCTIONS = 7, 25
_NODE, _INITIALIZER, _INPUT = 1, 5, 11
_NODE_INPUT, _NODE_OUTPUT, _OP_TYPE, _DOMAIN = 1, 2, 4, 7
_DATA_TYPE, _TENSOR_NAME, _VALUE_NAME = 2, 8, 1

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_STANDARD = ("", "ai.onnx", "com.microsoft")
"""Domains in which the operators of quantization mean the same."""

# The field op_type with its length, so that no name of a tensor is taken for it.
_DEQUANTIZE = re.compile(rb"\x22\x10DequantizeLinear")
_QUANTIZE = re.compile(rb"\x22\x0eQuantizeLinear")
# The attribute block_size, but for 0, which stands for none.
_BLOCKED = re.compile(rb"\x0a\x0ablock_size\x18[^\x00]")


@dataclass(frozen=True)
class ScannedNode:
    """A node of the main graph.

    Attributes:
        op_type: its operator, after its domain where that has operators of its own.
        inputs: names of its inputs; empty for one that is left out.
        outputs: names of its outputs.
        blocked: it has a ``block_size``: one scale for each block of that many weights.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    blocked: bool = False


@dataclass(frozen=True)
class Scan:
    """What an ONNX file says of its quantization.

    Attributes:
        dequantizes: it has DequantizeLinear somewhere: in its graph, a subgraph or a function.
        quantizes: it has QuantizeLinear somewhere, that is, activations in integers.
        nodes: of the main graph, in order; empty unless it has both.
        constants: ``TensorProto.DataType`` of the initializers by name, but for those that a caller
            may override; empty unless it has both.
    """

    dequantizes: bool = False
    quantizes: bool = False
    nodes: tuple[ScannedNode, ...] = ()
    constants: dict[str, int] = field(default_factory=dict)


class _MalformedError(ValueError):
    """The bytes are not a message of ``onnx.proto3``."""


def scan(path: Path) -> Scan:
    """Scan a file. Its time grows with the number of nodes and weights, not with their size.

    Returns:
        what was found; nothing when the file is no ONNX file, or a damaged one: who opens it then
        says so.

    Raises:
        OSError: it cannot be read.
    """
    if path.stat().st_size == 0:  # it cannot be mapped
        return Scan()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        try:
            return _scan_model(data)
        except (_MalformedError, UnicodeDecodeError):
            return Scan()


def _scan_model(data: mmap.mmap) -> Scan:
    graph, spans = None, []
    for number, start, end in _fields(data, 0, len(data)):
        if number == _GRAPH:
            graph = (start, end)
        elif number == _FUNCTIONS:
            spans.append((start, end))
    if graph is None:
        return Scan()
    entries = list(_fields(data, *graph))
    spans += [(start, end) for number, start, end in entries if number == _NODE]
    dequantizes = any(_DEQUANTIZE.search(data, *span) for span in spans)
    quantizes = dequantizes and any(_QUANTIZE.search(data, *span) for span in spans)
    if not quantizes:
        return Scan(dequantizes)
    nodes = []
    constants = {}
    overridable = set()
    for number, start, end in entries:
        if number == _NODE:
            nodes.append(_node(data, start, end))
        elif number == _INITIALIZER:
            name, kind = _tensor(data, start, end)
            constants[name] = kind
        elif number == _INPUT:
            overridable.update(_texts(data, start, end, _VALUE_NAME)[0])
    constants = {name: kind for name, kind in constants.items() if name not in overridable}
    return Scan(True, True, tuple(nodes), constants)


def _node(data: mmap.mmap, start: int, end: int) -> ScannedNode:
    kinds, domains, inputs, outputs = _texts(
        data, start, end, _OP_TYPE, _DOMAIN, _NODE_INPUT, _NODE_OUTPUT
    )
    kind = "".join(kinds[-1:])
    domain = "".join(domains[-1:])
    if domain not in _STANDARD:
        kind = f"{domain}::{kind}"
    blocked = _BLOCKED.search(data, start, end) is not None
    return ScannedNode(kind, tuple(inputs), tuple(outputs), blocked)


def _tensor(data: mmap.mmap, start: int, end: int) -> tuple[str, int]:
    name, kind = "", 0
    for number, first, last in _fields(data, start, end):
        if number == _DATA_TYPE:
            kind = _varint(data, first, last)[0]
        elif number == _TENSOR_NAME:
            name = data[first:last].decode()
    return name, kind


def _texts(data: mmap.mmap, start: int, end: int, *numbers: int) -> tuple[list[str], ...]:
    """Return the texts of some fields of a message, field by field."""
    found: dict[int, list[str]] = {number: [] for number in numbers}
    for number, first, last in _fields(data, start, end):
        if number in found:
            found[number].append(data[first:last].decode())
    return tuple(found[number] for number in numbers)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the content of each field of a message."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        wire = tag & 7
        if wire == _LENGTH:
            size, position = _varint(data, position, end)
            after = position + size
        elif wire == _VARINT:
            _, after = _varint(data, position, end)
        elif wire in (_FIXED32, _FIXED64):
            after = position + (4 if wire == _FIXED32 else 8)
        else:
            raise _MalformedError
        if after > end:
            raise _MalformedError
        yield tag >> 3, position, after
        position = after


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:  # 64 bits, seven in a byte
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _MalformedError
