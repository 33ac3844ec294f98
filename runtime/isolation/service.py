"""The worker's side of calls: a model, and the shared memory that its tensors lie in."""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Mapping
from typing import Any

from ...errors import IngotError
from ...frameworks import LoadOptions, installed_version, open_model
from ..exchange import unpack_source
from . import protocol
from .memory import Block, Blocks, map_received
from .protocol import Message, ProtocolError, entry
from .tensors import Array, Received, check, empty, place, unpack_strings, view
from .worker import error_values

_PROGRESS = struct.Struct("=Q")


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
        self._new: Block | None = None
        self._progress: Array | None = None
        if len(load.descriptors) > 1:
            raise ProtocolError(f"LOAD: found {len(load.descriptors)} file descriptors; expected 1")
        for descriptor in load.descriptors:
            size = max(_PROGRESS.size, os.fstat(descriptor).st_size)
            self._progress = map_received(descriptor, size).bytes
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
        self._received.introduce(entry(payload, "map", list), message.descriptors)
        for number in entry(payload, "free", list):
            block = self._used.pop(number, None)
            if block is None:
                raise ProtocolError(f"free: found the block {number}, which is not in use")
            self._blocks.give(block)
        arrays, watched = self._read(entry(payload, "tensors", dict))
        self._received.drop(entry(payload, "drop", list))
        failure = None
        try:
            returned = self._model.run(arrays, payload.get("outputs"))
            references, block = place(returned, self._blocks.take)
        except Exception as error:
            failure = error_values(error)
        if failure is not None:  # only now has the traceback let go of the inputs
            return protocol.ERROR, {**failure, "kept": _kept(arrays, watched)}, []
        introduced: list[tuple[int, int]] = []
        descriptors: list[int] = []
        if block is not None:
            self._used[block.number] = block
            if block.number not in self._introduced:
                self._introduced.add(block.number)
                self._new = block
                introduced.append((block.number, block.size))
                descriptors.append(block.descriptor)
        dropped = self._dropped[:]
        del self._dropped[:]
        self._introduced.difference_update(dropped)
        del returned
        reply = {
            "tensors": references,
            "map": introduced,
            "drop": dropped,
            "kept": _kept(arrays, watched),
        }
        return protocol.RESULT, reply, descriptors

    def sent(self) -> None:
        """Close the descriptor of a block that the last reply introduced."""
        if self._new is not None:
            self._new.close()
            self._new = None

    def _read(
        self, references: dict[str, Any]
    ) -> tuple[dict[str, Array], list[tuple[int, weakref.ref[Any]]]]:
        """Return the input arrays, and what tells which of them live on, by block."""
        arrays: dict[str, Array] = {}
        watched = []
        for name, reference in references.items():
            number, offset, dtype, length, shape = check(reference, self._received.contents, name)
            if number == 0:
                arrays[name] = empty(dtype, shape)
            elif dtype == "string":
                data = self._received.contents[number][offset : offset + length]
                arrays[name] = unpack_strings(data, shape)
            else:
                array = view(self._received.mappings[number], offset, dtype, length, shape)
                arrays[name] = array
                watched.append((number, weakref.ref(_root(array))))
        return arrays, watched

    def close(self) -> None:
        """Release the model."""
        self._model.close()
        self._blocks.close()


def _root(array: Array) -> Any:
    """Return what all views of an array's memory keep alive."""
    base = array.base
    while hasattr(base, "base"):
        base = base.base
    return base


def _kept(arrays: dict[str, Array], watched: list[tuple[int, weakref.ref[Any]]]) -> list[int]:
    """Forget the inputs of a call, and return the blocks of those that the model refers to."""
    arrays.clear()
    return sorted({number for number, reference in watched if reference() is not None})


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
    return _Opened(loaded.name, loaded.platform, loaded, loaded.infer, loaded.framework_version)


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

    def run(arrays: Mapping[str, Array], outputs: list[str] | None) -> dict[str, Array]:
        returned = model.run(arrays, outputs)
        wanted = outputs or names
        return {name: returned[name] for name in wanted if name in returned} if wanted else returned

    return _Opened("", source.framework, model, run, model.version)
