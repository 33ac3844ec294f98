"""Frames of the worker protocol, as docs/worker-protocol.md describes them, on a Unix socket."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import IngotError

VERSION = 1
MAGIC = b"INGW"
HEADER = struct.Struct("<4sBBHII")
"""Magic, version, kind, number of file descriptors, payload bytes, sequence number."""

HELLO, LOAD, READY, INFER, RESULT, ERROR = range(1, 7)
_KINDS = ("", "HELLO", "LOAD", "READY", "INFER", "RESULT", "ERROR")

MOST_PAYLOAD = 64 << 20
MOST_DESCRIPTORS = 64

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
        descriptors: file descriptors that came with it, now the receiver's to close.
    """

    kind: int
    sequence: int
    payload: dict[str, Any]
    descriptors: list[int]


class Connection:
    """Sends and receives frames on a connected socket; for one thread at a time.

    Args:
        sock: a connected Unix stream socket, closed with the connection.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = b""
        self._descriptors: list[int] = []
        self._timeout: float | None = None
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
        text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        if len(text) > MOST_PAYLOAD or len(descriptors) > MOST_DESCRIPTORS:
            raise ProtocolError(
                f"a message of {len(text)} bytes and {len(descriptors)} blocks;"
                f" expected at most {MOST_PAYLOAD} and {MOST_DESCRIPTORS}"
            )
        header = HEADER.pack(MAGIC, VERSION, kind, len(descriptors), len(text), sequence)
        data = header + text
        if self._timeout is not None:
            self._set_timeout(None)
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
        end = HEADER.size + length
        while len(self._buffer) < end:
            self._read(max(_READ_AHEAD, end - len(self._buffer)), deadline)
        text, self._buffer = self._buffer[HEADER.size : end], self._buffer[end:]
        descriptors, self._descriptors = self._descriptors, []
        if len(descriptors) != count:
            _close_all(descriptors)
            raise ProtocolError(f"found {len(descriptors)} file descriptors; expected {count}")
        try:
            payload = json.loads(text)
            if not isinstance(payload, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            _close_all(descriptors)
            raise ProtocolError(f"found a {_KINDS[kind]} that is no JSON object: {error}") from None
        return Message(kind, sequence, payload, descriptors)

    def _read(self, size: int, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        if left != self._timeout:
            self._set_timeout(left)
        try:
            data, ancillary, flags, _ = self.socket.recvmsg(size, _SPACE, _RECEIVE_FLAGS)
        except ConnectionResetError as error:
            raise ConnectionClosed from error
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

    def _set_timeout(self, timeout: float | None) -> None:
        self._timeout = timeout
        self.socket.settimeout(timeout)

    def close(self) -> None:
        """Close the socket, and descriptors that belong to no whole message."""
        self.socket.close()
        _close_all(self._descriptors)
        self._descriptors = []


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


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
