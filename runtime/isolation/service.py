"""The worker's side of calls: a model, and the shared memory that its tensors lie in."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ...errors import IngotError
from ...frameworks import LoadOptions, installed_version, open_model
from ...frameworks.base import OutputMemory
from ..exchange import unpack_source
from . import protocol
from .memory import Block, Blocks, map_received, owner_of
from .protocol import Message, ProtocolError, entry
from .tensors import (
    Array,
    Place,
    Received,
    Reference,
    empty,
    lay_out,
    place,
    reference_to,
    unpack_strings,
    view,
)
from .worker import error_values

_PROGRESS = struct.Struct("=Q")
_MOST_INPUTS = 64


class Service:
    """A loaded model that answers the calls of one connection.

    Args:
        load: the message LOAD.

    Raises:
        IngotError: the model cannot be loaded.
        ProtocolError: the message is malformed.
    """

    def __init__(self, load: Message) -> None:
        self._received = Received()
        self._dropped: list[int] = []
        self._blocks = Blocks(self._dropped.append)
        self._used: dict[int, Block] = {}
        self._introduced: set[int] = set()
        self._new: list[Block] = []
        self._inputs: dict[int, _Inputs] = {}
        self._progress: memoryview | None = None
        if len(load.descriptors) > 1:
            for descriptor in load.descriptors:
                os.close(descriptor)
            raise ProtocolError(f"LOAD: found {len(load.descriptors)} file descriptors; expected 1")
        for descriptor in load.descriptors:
            size = max(_PROGRESS.size, os.fstat(descriptor).st_size)
            self._progress = map_received(descriptor, size).bytes.data
        self._model = _open(load.payload)

    def describe(self) -> dict[str, Any]:
        """Return the payload of READY."""
        return self._model.describe()

    def infer(self, message: Message) -> tuple[int, dict[str, Any], list[int]]:
        """Answer an INFER.

        Returns:
            kind, payload and file descriptors of the reply, a RESULT, or an ERROR of the model.

        Raises:
            ProtocolError: the message is malformed.
        """
        if self._progress is not None:
            _PROGRESS.pack_into(self._progress, 0, message.sequence)
        payload = message.payload
        self._received.introduce(payload, message.descriptors)
        for number in entry(payload, "free", list):
            block = self._used.pop(number, None)
            if block is None:
                raise ProtocolError(f"free: found the block {number}, which is not in use")
            self._blocks.give(block)
        inputs = self._read(payload)
        self._received.drop(entry(payload, "drop", list))
        failure = None
        made: list[Block] = []
        try:
            memory = partial(self._memory, made)
            returned = self._model.run(dict(inputs.arrays), payload.get("outputs"), memory)
            references, block = place(returned, self._blocks.take, _find)
        except Exception as error:
            failure = error_values(error)
        used = {} if failure is not None else self._use(references, made, block)
        for unused in made:
            if unused.number not in used:
                self._blocks.give(unused)
        if failure is not None:  # only now has the traceback let go of the inputs
            return protocol.ERROR, {**failure, "kept": self._kept(payload, inputs)}, []
        self._new = [found for found in used.values() if found.number not in self._introduced]
        self._introduced.update(used)
        dropped = self._dropped[:]
        del self._dropped[:]
        self._introduced.difference_update(dropped)
        del returned
        reply = {
            "tensors": references,
            "map": [(found.number, found.size) for found in self._new],
            "drop": dropped,
            "kept": self._kept(payload, inputs),
        }
        return protocol.RESULT, reply, [found.descriptor for found in self._new]

    def _memory(
        self, made: list[Block], wanted: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> dict[str, Array]:
        """Return shared memory for the outputs of a model that can write them anywhere."""
        arrays, block = lay_out(wanted, self._blocks.take)
        made.append(block)
        return arrays

    def _use(
        self, references: Mapping[str, Any], made: list[Block], block: Block | None
    ) -> dict[int, Block]:
        """Note which blocks the caller reads from now on, and return them by number."""
        numbers = {reference[0] for reference in references.values()}
        found = {each.number: each for each in [*made, block] if each is not None}
        used = {number: each for number, each in found.items() if number in numbers}
        self._used.update(used)
        return used

    def sent(self) -> None:
        """Close the descriptors of the blocks that the last reply introduced."""
        for block in self._new:
            block.close()
        self._new = []

    def _read(self, payload: dict[str, Any]) -> _Inputs:
        """Return the input arrays of a call; those of calls with the very same payload again."""
        places = self._received.places(payload)
        known = self._inputs.get(id(places))
        if known is not None and known.places is places:
            return known
        inputs = _Inputs(places, self._received)
        if inputs.reusable:
            if len(self._inputs) >= _MOST_INPUTS:
                self._inputs.clear()
            self._inputs[id(places)] = inputs
        return inputs

    def _kept(self, payload: dict[str, Any], inputs: _Inputs) -> list[int]:
        """Return the blocks of inputs that the model still refers to."""
        kept = inputs.referred_to()
        if kept:
            self._inputs.pop(id(inputs.places), None)
        if payload["drop"]:
            self._inputs.clear()
        return kept

    def close(self) -> None:
        """Release the model."""
        self._model.close()
        self._blocks.close()


def _find(array: Array) -> Reference | None:
    owner = owner_of(array)
    return reference_to(array, owner) if type(owner) is Block else None


class _Inputs:
    """The input arrays of calls with the same places.

    Attributes:
        places: where they lie.
        arrays: by name; views of shared memory, but for strings and what is empty.
        reusable: all of them are such views, so that the next call finds its inputs there.
    """

    def __init__(self, places: list[Place], received: Received) -> None:
        self.places = places
        self.arrays: dict[str, Array] = {}
        self._views: list[tuple[int, Array]] = []
        self.reusable = True
        for name, number, offset, dtype, length, shape in places:
            if number == 0:
                self.arrays[name] = empty(dtype, shape)
            elif dtype == "string":
                data = received.contents[number][offset : offset + length]
                self.arrays[name] = unpack_strings(data, shape)
                self.reusable = False
            else:
                array = view(received.mappings[number], offset, dtype, length, shape)
                self.arrays[name] = array
                self._views.append((number, array))
                if isinstance(array.base, np.ndarray):  # then that is the base of further views
                    self._views.append((number, array.base))
                del array
        self._references = self._count()

    def _count(self) -> list[int]:
        return [sys.getrefcount(array) for _, array in self._views]

    def referred_to(self) -> list[int]:
        """Return the blocks of arrays to which there are more references than at first.

        Every view of such an array, and every tensor that shares its memory, refers to it.
        """
        counts = zip(self._views, self._count(), self._references, strict=True)
        return sorted({number for (number, _), now, first in counts if now > first})


class _Opened:
    """A model as LOAD asked for it: a path, checked here, or a source, checked by the caller."""

    def __init__(self, name: str, platform: str, model: Any, run: Any, version: str) -> None:
        self.name, self.platform = name, platform
        self.run = run
        self.close = model.close
        self._inputs, self._outputs = model.inputs, model.outputs
        self._version = version

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "platform": self.platform,
            "inputs": [spec.to_dict() for spec in self._inputs],
            "outputs": [spec.to_dict() for spec in self._outputs],
            "framework_version": self._version,
        }


def _open(payload: dict[str, Any]) -> _Opened:
    if "source" in payload:
        return _open_source(payload)
    from ..loading import load

    options = payload.get("options") or {}
    known = ("device", "threads", "check", "trust_code", "ignore_lock")
    loaded = load(
        entry(payload, "path", str), **{name: options[name] for name in known if name in options}
    )

    def run(arrays: Mapping[str, Array], outputs: Any, memory: OutputMemory) -> dict[str, Array]:
        return loaded.infer(arrays, outputs)

    return _Opened(loaded.name, loaded.platform, loaded, run, loaded.framework_version)


def _open_source(payload: dict[str, Any]) -> _Opened:
    from ..requirements import check_lock

    source = unpack_source(payload["source"])
    options = payload["options"]
    try:
        if payload.get("lock") is not None:
            check_lock(payload["lock"], source.label)
        model = open_model(source, LoadOptions(options["device"], options["threads"]))
    except IngotError as error:
        # The caller compares it with what the package asks for: that may be the reason.
        error.framework_version = installed_version(source.framework)  # type: ignore[attr-defined]
        raise
    names = [spec.name for spec in model.outputs]

    def run(arrays: Mapping[str, Array], outputs: Any, memory: OutputMemory) -> dict[str, Array]:
        returned = model.run_into(arrays, outputs, memory)
        wanted = outputs or names
        return {name: returned[name] for name in wanted if name in returned} if wanted else returned

    return _Opened("", source.framework, model, run, model.version)
