"""Frames of the worker protocol, as docs/worker-protocol.md describes them, on a Unix socket."""

from __future__ import annotations

import json
import math
import os
import select
import socket
import struct
import time
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ...errors import IngotError

VERSION = 1
MAGIC = b"INGW"
HEADER = struct.Struct("<4sBBHII")
"""Magic, version, kind, number of file descriptors, payload bytes, sequence number."""

HELLO, LOAD, READY, INFER, RESULT, ERROR = range(1, 7)
_KINDS = ("", "HELLO", "LOAD", "READY", "INFER", "RESULT", "ERROR")

END_SECONDS = 2.0
"""What an idle worker whose caller is gone has to end by itself."""

MOST_PAYLOAD = 64 << 20
MOST_DESCRIPTORS = 64

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_decode = json.JSONDecoder().decode
_REMEMBERED = 1 << 12
_SPIN_SECONDS = 100e-6
_MOST_SLEEPS = 63
_MOST_WAIT_SECONDS = 3600.0  # poll takes milliseconds as an int of C
_READ_AHEAD = 1 << 16
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)
_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_SPACE = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)


class ProtocolError(IngotError):
    """The other side of a connection sent something that is no frame of this protocol."""


class ConnectionClosed(Exception):
    """The other side of a connection is gone."""


class Message(NamedTuple):
    """A frame that was received.

    Attributes:
        kind: ``HELLO`` to ``ERROR``.
        sequence: number of the request that it is, or answers.
        payload: its JSON object.
        descriptors: file descriptors that came with it; who takes one removes it here.
    """

    kind: int
    sequence: int
    payload: dict[str, Any]
    descriptors: list[int]


@lru_cache(256)
def _parse(text: bytes) -> dict[str, Any]:
    """Parse a payload; calls of the same shapes have the same ones, which nobody changes."""
    payload = _decode(text.decode("utf-8"))
    if not isinstance(payload, dict):
        raise ValueError("no object")
    return payload


class Connection:
    """Sends and receives frames on a connected socket; for one thread at a time.

    Args:
        sock: a connected Unix stream socket, closed with the connection.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = b""
        self._descriptors: list[int] = []
        self._asleep = self._sleeps = 0
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        sock.settimeout(None)

    def send(
        self,
        kind: int,
        sequence: int,
        payload: Mapping[str, Any],
        descriptors: Sequence[int] = (),
    ) -> None:
        """Send one frame.

        Args:
            kind: ``HELLO`` to ``ERROR``.
            sequence: number of the request.
            payload: JSON values.
            descriptors: file descriptors that go with it; they stay open here.

        Raises:
            ConnectionClosed: the other side is gone; it has not got the whole frame.
            ProtocolError: it is too large.
        """
        try:
            text = _encode(payload).encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair, of a file name: JSON can escape it
            text = json.dumps(payload).encode("ascii")
        if len(text) > MOST_PAYLOAD or len(descriptors) > MOST_DESCRIPTORS:
            raise ProtocolError(
                f"a message of {len(text)} bytes and {len(descriptors)} blocks;"
                f" expected at most {MOST_PAYLOAD} and {MOST_DESCRIPTORS}"
            )
        header = HEADER.pack(MAGIC, VERSION, kind, len(descriptors), len(text), sequence)
        data = header + text
        try:
            if descriptors:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))
                sent = self.socket.sendmsg([data], [rights], _SEND_FLAGS)
            else:
                sent = self.socket.send(data, _SEND_FLAGS)
            if sent < len(data):
                self.socket.sendall(data[sent:], _SEND_FLAGS)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionClosed from error

    def receive(self, timeout: float | None = None) -> Message:
        """Wait for one frame.

        Args:
            timeout: seconds until the whole frame has to be there; None waits for ever.

        Raises:
            ConnectionClosed: the other side is gone.
            TimeoutError: nothing, or only a part, came in time.
            ProtocolError: what came is no frame.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while len(self._buffer) < HEADER.size:
            self._read(_READ_AHEAD, deadline)
        magic, version, kind, count, length, sequence = HEADER.unpack_from(self._buffer)
        if magic != MAGIC:
            raise ProtocolError(f"found a message that starts with {magic!r}; expected {MAGIC!r}")
        if version != VERSION:
            raise ProtocolError(f"found protocol version {version}; expected {VERSION}")
        if not HELLO <= kind <= ERROR:
            raise ProtocolError(f"found a message of kind {kind}; expected {HELLO} to {ERROR}")
        if length > MOST_PAYLOAD or count > MOST_DESCRIPTORS:
            raise ProtocolError(
                f"found a message of {length} bytes and {count} file descriptors;"
                f" expected at most {MOST_PAYLOAD} and {MOST_DESCRIPTORS}"
            )
        if count and kind not in (LOAD, INFER, RESULT):
            raise ProtocolError(f"found {count} file descriptors with a {_KINDS[kind]}; expected 0")
        end = HEADER.size + length
        while len(self._buffer) < end:
            self._read(max(_READ_AHEAD, end - len(self._buffer)), deadline)
        text, self._buffer = self._buffer[HEADER.size : end], self._buffer[end:]
        descriptors, self._descriptors = self._descriptors, []
        if len(descriptors) != count:
            _close_all(descriptors)
            raise ProtocolError(f"found {len(descriptors)} file descriptors; expected {count}")
        try:
            payload = _parse(text) if length < _REMEMBERED else _parse.__wrapped__(text)
        except (ValueError, RecursionError) as error:
            _close_all(descriptors)
            raise ProtocolError(f"found a {_KINDS[kind]} that is no JSON object: {error}") from None
        return Message(kind, sequence, payload, descriptors)

    def _read(self, size: int, deadline: float | None) -> None:
        try:
            found = self._spin(size)
            if found is None:
                if deadline is not None:
                    self._wait(deadline)
                found = self.socket.recvmsg(size, _SPACE, _RECEIVE_FLAGS)
        except ConnectionResetError as error:
            raise ConnectionClosed from error
        data, ancillary, flags, _ = found
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                found = array("i")
                found.frombytes(content[: len(content) - len(content) % found.itemsize])
                self._descriptors.extend(found)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > MOST_DESCRIPTORS:
            raise ProtocolError(f"found more than {MOST_DESCRIPTORS} file descriptors")
        if not data:
            raise ConnectionClosed
        self._buffer = self._buffer + data if self._buffer else data

    def _spin(self, size: int) -> Any:
        """Look for data for a moment before this thread goes to sleep; return None if none came.

        To wake a process on another core takes longer than a small call. Where that did not pay the
        last time (a longer call, a busy machine) it is left out, ever more often.
        """
        if self._asleep:
            self._asleep -= 1
            return None
        receive, flags = self.socket.recvmsg, _RECEIVE_FLAGS | socket.MSG_DONTWAIT
        end = time.monotonic() + _SPIN_SECONDS
        found = None
        while found is None:
            try:
                found = receive(size, _SPACE, flags)
            except BlockingIOError:
                if time.monotonic() > end:
                    break
                os.sched_yield()  # whoever else wants this core gets it
        if found is not None and time.monotonic() <= end:
            self._sleeps = 0
        else:
            self._asleep = self._sleeps = min(2 * self._sleeps + 1, _MOST_SLEEPS)
        return found

    def _wait(self, deadline: float) -> None:
        """Wait until there is something to read.

        Raises:
            TimeoutError: the deadline passed.
        """
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if self._readable.poll(math.ceil(min(left, _MOST_WAIT_SECONDS) * 1000)):
                return

    def close(self) -> None:
        """Close the socket, and descriptors that belong to no whole message."""
        self.socket.close()
        _close_all(self._descriptors)
        self._descriptors = []


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def discard(message: Message) -> None:
    """Close the file descriptors of a message that nobody has taken."""
    while message.descriptors:
        os.close(message.descriptors.pop())


def expect(message: Message, *kinds: int) -> Message:
    """Return a message if it is of one of these kinds.

    Raises:
        ProtocolError: it is not.
    """
    if message.kind not in kinds:
        _close_all(message.descriptors)
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        raise ProtocolError(f"found a message {_KINDS[message.kind]}; expected {wanted}")
    return message


def entry(payload: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a value of a payload.

    Raises:
        ProtocolError: it is missing, or of another type.
    """
    value = payload.get(key)
    if not isinstance(value, kind):
        raise ProtocolError(f"{key}: found {value!r:.80}; expected {kind.__name__}")
    return value
