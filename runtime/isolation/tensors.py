"""Arrays as tensors of the worker protocol: written into blocks, and read from them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ...errors import InputError
from ...specs.dtypes import DTYPES, dtype_name, numpy_dtype
from . import memory
from .memory import ALIGNMENT, Block, Tensor, aligned
from .protocol import ProtocolError, entry

Array = np.ndarray[Any, Any]
Reference = list[Any]
"""``[block, offset, dtype, shape]``, and for strings their bytes."""

_ENTRY = np.dtype("<u8")
_MOST_PLACES = 256


@cache
def name_of(dtype: np.dtype[Any]) -> str | None:
    """Return the name of an element type of this machine's byte order, or None."""
    return dtype_name(dtype) if dtype.isnative else None


def pack_strings(array: Array) -> bytes:
    """Return the strings of an array: offsets (n + 1 uint64), then UTF-8 text."""
    texts = [str(item).encode("utf-8", "surrogatepass") for item in array.flat]
    offsets = np.zeros(len(texts) + 1, _ENTRY)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return offsets.tobytes() + b"".join(texts)


def unpack_strings(data: Array, shape: tuple[int, ...]) -> Array:
    """Return an array of strings out of what :func:`pack_strings` made.

    Raises:
        ProtocolError: it does not hold that many strings.
    """
    count = math.prod(shape)
    start = (count + 1) * _ENTRY.itemsize
    if len(data) < start:
        raise ProtocolError(f"found {len(data)} bytes of {count} strings; expected {start} or more")
    offsets = data[:start].view(_ENTRY).astype(np.int64)
    text = data[start:].tobytes()
    if offsets[0] != 0 or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
        raise ProtocolError(f"found strings whose offsets do not fit their {len(text)} bytes")
    bounds = offsets.tolist()
    try:
        values = [
            text[first:last].decode("utf-8", "surrogatepass") for first, last in pairwise(bounds)
        ]
    except UnicodeDecodeError as error:
        raise ProtocolError(f"found a string that is no UTF-8: {error}") from None
    return np.array(values, dtype=np.str_).reshape(shape)


def place(
    arrays: Mapping[str, Array],
    take: Callable[[int], Block],
    find: Callable[[Array], Reference | None] | None = None,
) -> tuple[dict[str, Reference], Block | None]:
    """Write arrays into a block, one after the other, and return where they are.

    Args:
        arrays: by name; copied once, whatever their strides, and one under two names once.
        take: gives a block of at least so many bytes.
        find: returns the place of an array that lies in a block already, or None.

    Returns:
        references by name, and the block; None when nothing had to be copied.

    Raises:
        InputError: an element type that the protocol cannot say.
        SharedMemoryError: there is no memory left.
    """
    references: dict[str, Reference] = {}
    placed: dict[int, Reference] = {}
    copies: list[tuple[Reference, Any, int]] = []
    size = 0
    for name, array in arrays.items():
        dtype = name_of(array.dtype)
        if dtype is None:
            if array.dtype.isnative:
                raise InputError(f"{name!r}: found dtype {array.dtype}; expected a tensor's")
            array = array.astype(array.dtype.newbyteorder("="))
            dtype = name_of(array.dtype)
        if array.size == 0:
            references[name] = [0, 0, dtype, array.shape]
            if dtype == "string":
                references[name].append(0)
            continue
        if dtype == "string":
            text = pack_strings(array)
            reference = [0, size, dtype, array.shape, len(text)]
            copies.append((reference, np.frombuffer(text, np.uint8), len(text)))
            size += aligned(len(text))
        else:
            found = placed.get(id(array))
            if found is None and find is not None:
                found = find(array)
            if found is not None:
                references[name] = found
                continue
            reference = placed[id(array)] = [0, size, dtype, array.shape]
            copies.append((reference, array, array.nbytes))
            size += aligned(array.nbytes)
        references[name] = reference
    if not copies:
        return references, None
    block = take(size)
    for reference, array, length in copies:
        reference[0] = block.number
        offset = reference[1]
        target = block.bytes[offset : offset + length]
        np.copyto(target.view(array.dtype).reshape(array.shape), array)
    return references, block


def lay_out(
    wanted: Mapping[str, tuple[str, tuple[int, ...]]], take: Callable[[int], Block]
) -> tuple[dict[str, Array], Block]:
    """Return arrays in one new block, with whatever it holds.

    Args:
        wanted: dtype (no string) and shape by name, each with elements.
        take: gives a block of at least so many bytes.

    Returns:
        arrays by name, whose owner is the block, and the block.

    Raises:
        SharedMemoryError: there is no memory left.
    """
    lengths = {
        name: math.prod(shape) * numpy_dtype(dtype).itemsize
        for name, (dtype, shape) in wanted.items()
    }
    block = take(sum(map(aligned, lengths.values())))
    arrays: dict[str, Array] = {}
    offset = 0
    for name, (dtype, shape) in wanted.items():
        arrays[name] = view(block, offset, dtype, lengths[name], shape)
        offset += aligned(lengths[name])
    return arrays, block


def reference_to(array: Array, block: Block) -> Reference | None:
    """Return the place of an array that lies in a block, or None when it has to be copied."""
    if not array.flags.c_contiguous:
        return None
    offset = array.__array_interface__["data"][0] - block.address
    dtype = name_of(array.dtype)
    if offset % ALIGNMENT or dtype is None:
        return None
    return [block.number, offset, dtype, array.shape]


def check(reference: Any, sizes: Mapping[int, Any], what: str) -> tuple[int, int, str, int, Any]:
    """Check a reference that the other side sent.

    Args:
        reference: what was found.
        sizes: known blocks by number, with a length.
        what: the tensor, for messages.

    Returns:
        block, offset, dtype, bytes, shape; block 0 for a tensor without elements.

    Raises:
        ProtocolError: it is malformed, or does not lie in a known block.
    """
    try:
        number, offset, dtype, shape, *rest = reference
        shape = tuple(shape)
        plain = type(number) is int and type(offset) is int and dtype in DTYPES
        if not plain or not all(type(dim) is int and dim >= 0 for dim in shape):
            raise ValueError
        if len(shape) > 64 or len(rest) != (dtype == "string"):
            raise ValueError
        length = rest[0] if rest else math.prod(shape) * numpy_dtype(dtype).itemsize
        if type(length) is not int or length < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise ProtocolError(
            f"{what}: found {reference!r:.80}; expected block, offset, dtype and shape"
        ) from None
    if 0 in shape:
        return 0, 0, dtype, 0, shape
    block = sizes.get(number)
    if block is None:
        raise ProtocolError(f"{what}: found the block {number}, which was never introduced")
    if offset < 0 or offset % ALIGNMENT or offset + length > len(block):
        raise ProtocolError(
            f"{what}: found {length} bytes from byte {offset}; the block {number} has {len(block)}"
        )
    return number, offset, dtype, length, shape


class Place(NamedTuple):
    """Where a tensor lies.

    Attributes:
        name: the tensor.
        block: number of the block; 0 for a tensor without elements.
        offset: its first byte.
        dtype: its element type, as in a spec.
        length: its bytes.
        shape: its sizes.
    """

    name: str
    block: int
    offset: int
    dtype: str
    length: int
    shape: tuple[int, ...]


class Received:
    """The blocks of the other side that it has introduced.

    Attributes:
        mappings: their memory, by number.
        contents: the same as ``(size,)`` uint8.
    """

    def __init__(self) -> None:
        self.mappings: dict[int, memory.Mapping] = {}
        self.contents: dict[int, Array] = {}
        self._places: dict[int, tuple[Any, list[Place]]] = {}

    def places(self, payload: Mapping[str, Any]) -> list[Place]:
        """Return where the tensors of a message lie.

        Calls of the same shapes come with the very same payload (see ``protocol``), which is
        checked once.

        Raises:
            ProtocolError: a reference is malformed, or does not lie in a known block.
        """
        known = self._places.get(id(payload))
        if known is not None and known[0] is payload:
            return known[1]
        found = [
            Place(name, *check(reference, self.contents, name))
            for name, reference in entry(payload, "tensors", dict).items()
        ]
        if len(self._places) >= _MOST_PLACES:
            self._places.clear()
        self._places[id(payload)] = payload, found
        return found

    def introduce(self, payload: Mapping[str, Any], descriptors: list[int]) -> None:
        """Map the blocks of the key ``map`` of a payload; the descriptors are closed and taken.

        Raises:
            ProtocolError: it is malformed.
            SharedMemoryError: a block is smaller than was said, or cannot be mapped.
        """
        try:
            introduced = entry(payload, "map", list)
            if len(introduced) != len(descriptors):
                raise ProtocolError(
                    f"map: found {len(introduced)} blocks and {len(descriptors)} file descriptors"
                )
            for found in introduced:
                plain = isinstance(found, list) and len(found) == 2
                if not plain or not all(type(part) is int and part > 0 for part in found):
                    raise ProtocolError(f"map: found {found!r:.80}; expected number and size")
                number, size = found
                if number in self.mappings:
                    raise ProtocolError(f"map: found the block {number} a second time")
                mapping = memory.map_received(descriptors.pop(0), size)
                self.mappings[number] = mapping
                self.contents[number] = mapping.bytes
        finally:
            while descriptors:
                os.close(descriptors.pop())

    def drop(self, numbers: list[int]) -> None:
        """Forget blocks; their memory stays mapped as long as an array refers to it."""
        if numbers:
            self._places.clear()
        for number in numbers:
            self.mappings.pop(number, None)
            self.contents.pop(number, None)


def empty(dtype: str, shape: tuple[int, ...]) -> Array:
    """Return an array without elements."""
    return np.empty(shape, numpy_dtype(dtype))


def view(owner: Any, offset: int, dtype: str, length: int, shape: tuple[int, ...]) -> Array:
    """Return the array at a place of shared memory; it keeps ``owner`` alive.

    Args:
        owner: has the ``address`` of the memory.
        offset: its first byte.
        dtype: a name of a spec, no string.
        length: its bytes.
        shape: its sizes.
    """
    kind = numpy_dtype(dtype)
    if kind.kind == "V":  # bfloat16: NumPy knows no such type string
        return np.asarray(Tensor(owner, offset, "|u1", (length,))).view(kind).reshape(shape)
    return np.asarray(Tensor(owner, offset, kind.str, shape))
