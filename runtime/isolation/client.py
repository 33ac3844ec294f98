"""One worker, seen by its caller: it loads the model, and answers calls."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ... import errors
from ...errors import IngotError, IsolationError, MissingDependencyError
from ...specs.dtypes import numpy_dtype
from ..exchange import unpack_error, unpack_specs
from . import protocol, tensors
from .memory import Block, Blocks, Lease, create, owner_of
from .memory import Mapping as SharedMapping
from .process import WorkerProcess
from .protocol import Connection, ConnectionClosed, Message, ProtocolError, entry
from .tensors import Array, Received, Reference

_COPY_BELOW = 1 << 15
"""Outputs of a call that are smaller, in bytes, are copied: lending a block costs more."""

_PROGRESS = struct.Struct("=Q")


class NotBegunError(Exception):
    """A worker was gone before it had begun with a call, which is safe to repeat.

    Args:
        how: how it ended.
    """


class Worker:
    """A worker process, started by the constructor; its methods are for one thread at a time.

    Attributes:
        process: its process.
        ended: it was seen to have ended; the process is reaped and the socket closed.

    Args:
        name: what messages call it (``worker 1``).
        label: the model, for messages.
        blocks: where inputs are written.
        python: the interpreter.
        arguments: further arguments of the worker.
        environment: of the process.
    """

    def __init__(
        self,
        name: str,
        label: str,
        blocks: Blocks,
        python: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self._name, self._label = name, label
        self._python = python
        self._blocks = blocks
        self._sequence = 0
        self._known: set[int] = set()
        self._drops: deque[int] = deque()
        self._received = Received()
        self._freed: deque[int] = deque()
        self._lent: set[int] = set()
        self.ended = False
        self._progress_descriptor = create(_PROGRESS.size)
        try:
            self._progress = SharedMapping(self._progress_descriptor, _PROGRESS.size).bytes.data
            self.process = WorkerProcess(label, python, arguments, environment)
        except BaseException:
            os.close(self._progress_descriptor)
            raise
        self._called = f"{name} (process {self.process.pid})"
        self._connection = Connection(self.process.socket)

    def load(self, payload: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Have the worker load its model, and return the payload of READY.

        Args:
            payload: of LOAD.
            timeout: seconds that the start may take.

        Raises:
            IngotError: the model cannot be loaded, or the worker did not answer; it has ended.
        """
        deadline = time.monotonic() + timeout
        try:
            hello = self._connection.receive(timeout)
            if hello.kind == protocol.ERROR:
                self._raise(hello.payload)
            protocol.expect(hello, protocol.HELLO)
            self._connection.send(protocol.LOAD, 0, payload, [self._progress_descriptor])
            ready = self._connection.receive(max(0.0, deadline - time.monotonic()))
            if ready.kind == protocol.ERROR:
                self._raise(ready.payload)
            return _checked(protocol.expect(ready, protocol.READY).payload)
        except ConnectionClosed:
            how = self.end()
            raise IsolationError(
                f"{self._label}: {self._name} {how} before the model was loaded",
                hint=f"expected a Python interpreter; found {self._python}"
                if self._python != sys.executable
                else None,
            ) from None
        except TimeoutError:
            self.end()
            raise IsolationError(
                f"{self._label}: {self._called} did not load the model within"
                f" {timeout:g} s and was ended",
                hint="give it more time: --start-timeout (start_timeout=... in Python)",
            ) from None
        except ProtocolError as error:
            self._refuse(error)
        except BaseException:
            self.end()
            raise
        finally:
            os.close(self._progress_descriptor)

    def call(
        self, arrays: Mapping[str, Array], outputs: Sequence[str] | None, timeout: float | None
    ) -> dict[str, Array]:
        """Run the model on one batch.

        Args:
            arrays: by input name; those that lie in shared memory are not copied.
            outputs: names; None means all.
            timeout: seconds that it may take; None has no limit.

        Raises:
            IsolationError: the worker died or hung; it has ended.
            NotBegunError: the worker was gone before it began with this call.
            IngotError: the model failed; the worker goes on.
        """
        references, block = tensors.place(arrays, self._blocks.take, self._finder())
        used = self._blocks_of(arrays, references, block)
        message: Message | None = None
        try:
            message = self._exchange(references, used, outputs, timeout)
            kept = entry({"kept": [], **message.payload}, "kept", list)
            for found in used if kept else ():
                found.kept = found.kept or found.number in kept
            if message.kind == protocol.ERROR:
                self._raise(message.payload)
            try:
                return self._outputs(message)
            except (TypeError, ValueError) as error:
                raise ProtocolError(f"found outputs that are none: {error}") from error
            except BaseException:  # which blocks are in use is unknown from now on
                self.end()
                raise
        except ProtocolError as error:
            self._refuse(error)
        finally:
            if message is not None:
                protocol.discard(message)
            if block is not None:
                self._blocks.give(block)

    def _exchange(
        self,
        references: Mapping[str, Reference],
        used: Sequence[Block],
        outputs: Sequence[str] | None,
        timeout: float | None,
    ) -> Message:
        """Send an INFER and return its answer; whatever else happens, the worker has ended."""
        self._sequence = sequence = self._sequence % 0xFFFFFFFF + 1
        try:
            new = [block for block in used if block.number not in self._known]
            payload: dict[str, Any] = {
                "tensors": references,
                "outputs": outputs,
                "map": [(found.number, found.size) for found in new],
                "drop": _drained(self._drops, self._known),
                "free": _drained(self._freed),
            }
            self._lent.difference_update(payload["free"])
            try:
                descriptors = [found.descriptor for found in new]
                self._connection.send(protocol.INFER, sequence, payload, descriptors)
                self._known.update(found.number for found in new)
                message = self._connection.receive(timeout)
            except ConnectionClosed:
                how = self.end()
                if self._begun() != sequence and self.process.ended_by is None:
                    raise NotBegunError(how) from None
                raise IsolationError(
                    f"{self._label}: {self._name} {how} during a call",
                    hint="it is started again: the next call works",
                ) from None
            except TimeoutError:
                self.end()
                raise IsolationError(
                    f"{self._label}: {self._called} did not answer within"
                    f" {timeout:g} s and was ended",
                    hint="it is started again; more time is given by --timeout (timeout=...)",
                ) from None
            protocol.expect(message, protocol.RESULT, protocol.ERROR)
            if message.sequence != sequence:
                protocol.discard(message)
                raise ProtocolError(f"found the answer to call {message.sequence}, not {sequence}")
            return message
        except (ProtocolError, NotBegunError, IsolationError):
            raise
        except BaseException:  # Ctrl-C: an answer that comes later must not meet the next call
            self.end()
            raise

    def _begun(self) -> int:
        number: int = _PROGRESS.unpack_from(self._progress)[0]
        return number

    def _finder(self) -> Callable[[Array], Reference | None]:
        """Return what finds arrays in blocks of this model's caller.

        One message introduces only so many blocks; what lies in others is copied.
        """
        new: set[int] = set()

        def find(array: Array) -> Reference | None:
            block = self._block_of(array)
            if block is None:
                return None
            reference = tensors.reference_to(array, block)
            if reference is not None and block.number not in self._known:
                if len(new | {block.number}) == protocol.MOST_DESCRIPTORS:  # one is for copies
                    return None
                new.add(block.number)
            return reference

        return find

    def _blocks_of(
        self,
        arrays: Mapping[str, Array],
        references: Mapping[str, Reference],
        block: Block | None,
    ) -> list[Block]:
        """Return the caller's blocks that a call uses, each one once."""
        used = [] if block is None else [block]
        for name, array in arrays.items():
            found = self._block_of(array)
            if found is None or found in used or references[name][0] != found.number:
                continue
            used.append(found)
        return used

    def _block_of(self, array: Array) -> Block | None:
        owner = owner_of(array)
        if type(owner) is not Lease or not isinstance(owner.block, Block):
            return None
        return owner.block if owner.block.owner is self._blocks else None

    def drop(self, number: int) -> None:
        """Tell the worker, with the next call, that a block of the caller's is gone."""
        self._drops.append(number)

    def _outputs(self, message: Message) -> dict[str, Array]:
        payload = message.payload
        self._received.introduce(payload, message.descriptors)
        places = self._received.places(payload)
        used = {place.block for place in places if place.block}
        if not used.isdisjoint(self._lent):
            raise ProtocolError(
                f"found outputs in the block {min(used & self._lent)}, still in use"
            )
        self._lent |= used
        small = sum(place.length for place in places) < _COPY_BELOW
        leases: dict[int, Lease] = {}
        copied: set[int] = set()
        found: dict[str, Array] = {}
        for name, number, offset, dtype, length, shape in places:
            if number == 0:
                found[name] = tensors.empty(dtype, shape)
                continue
            data = self._received.contents[number][offset : offset + length]
            if dtype == "string":
                found[name] = tensors.unpack_strings(data, shape)
                copied.add(number)
            elif small:
                found[name] = data.view(numpy_dtype(dtype)).reshape(shape).copy()
                copied.add(number)
            else:
                if number not in leases:
                    mapping = self._received.mappings[number]
                    leases[number] = _lend(number, mapping, self._freed)
                found[name] = tensors.view(leases[number], offset, dtype, length, shape)
        self._freed.extend(copied.difference(leases))
        self._received.drop(entry(payload, "drop", list))
        return found

    def _raise(self, payload: Mapping[str, Any]) -> NoReturn:
        """Raise what an ERROR tells, as the same class where there is one."""
        kind = getattr(errors, str(payload.get("type")), None)
        if not (isinstance(kind, type) and issubclass(kind, IngotError)):
            kind = None
        message, hint = str(payload.get("message")), payload.get("hint")
        if kind is MissingDependencyError and self._python != sys.executable:
            message += f" (in the worker, under {self._python})"
            if payload.get("module"):
                hint = f"{self._python} -m pip install {payload['module']}"
        if kind is None:
            kind = IsolationError
            message = f"{self._label}: {self._name}: {message}"
        error = unpack_error({"class": kind.__name__, "message": message, "hint": hint})
        error.framework_version = payload.get("framework_version")  # type: ignore[attr-defined]
        raise error

    def _refuse(self, error: ProtocolError) -> NoReturn:
        self.end()
        raise IsolationError(
            f"{self._label}: {self._called} broke the worker protocol and was ended: {error}"
        ) from error

    def end(self) -> str:
        """End the process and all that it started; return how it ended."""
        how = self.process.end()
        self.ended = True
        self._connection.close()
        return how


def _lend(number: int, mapping: SharedMapping, freed: deque[int]) -> Lease:
    """Return a lease of a worker's block, which keeps nothing else of the worker alive."""

    def give(block: tuple[int, SharedMapping]) -> None:
        freed.append(block[0])

    return Lease((number, mapping), mapping.address, give)


def _drained(waiting: deque[int], known: set[int] | None = None) -> list[int]:
    """Empty a queue that other threads add to; only what is in ``known``, which loses it."""
    found = []
    while waiting:
        number = waiting.popleft()
        if known is None:
            found.append(number)
        elif number in known:
            known.discard(number)
            found.append(number)
    return found


def _checked(ready: dict[str, Any]) -> dict[str, Any]:
    """Return the payload of a READY that tells of a model.

    Raises:
        ProtocolError: it does not.
    """
    entry(ready, "framework_version", str)
    for key in ("inputs", "outputs"):
        try:
            unpack_specs(entry(ready, key, list))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"{key}: found {ready[key]!r:.80}; expected tensors") from error
    return ready
