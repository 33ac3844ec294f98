"""The worker protocol: frames that are none are refused, and the next caller is served."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation_models import PATIENCE, moods, open_files, wait_until

from ingot.runtime.isolation import protocol
from ingot.runtime.isolation.protocol import Connection, ConnectionClosed, ProtocolError

HELLO, LOAD, READY, INFER, RESULT, ERROR = range(1, 7)
CALL = {"outputs": None, "map": [], "drop": [], "free": []}


class Listener:
    """A worker that waits for callers at a socket file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "socket"
        self.model = moods(folder)
        command = [sys.executable, "-m", "ingot.runtime.isolation", "--listen", str(self.path)]
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(command, stderr=self.log)
        wait_until(lambda: self.path.exists() and self.accepts(), "it listens")

    def accepts(self) -> bool:
        try:
            Connection(self.connect()).close()
        except ConnectionRefusedError:
            return False
        return True

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.path))
        return sock

    def caller(self) -> Connection:
        connection = Connection(self.connect())
        hello = connection.receive(PATIENCE)
        assert hello.kind == HELLO
        assert hello.payload["pid"] == self.process.pid
        return connection

    def loaded(self) -> Connection:
        connection = self.caller()
        connection.send(LOAD, 1, {"path": str(self.model)})
        ready = connection.receive(PATIENCE)
        assert (ready.kind, ready.sequence) == (READY, 1)
        assert [spec["name"] for spec in ready.payload["inputs"]] == ["x", "how"]
        return connection

    def check_serves(self) -> None:
        """Make one call."""
        connection = self.loaded()
        block = memory(np.arange(4, dtype=np.float32).tobytes() + bytes(48) + strings(""))
        tensors = {"x": [1, 0, "float32", [4]], "how": [1, 64, "string", [], 16]}
        message = {**CALL, "tensors": tensors, "map": [[1, 80]]}
        connection.send(INFER, 2, message, [block])
        os.close(block)
        result = connection.receive(PATIENCE)
        assert (result.kind, result.sequence) == (RESULT, 2), result
        number, offset, dtype, shape = result.payload["tensors"]["out"]
        assert (dtype, shape) == ("float32", [4])
        ((mapped, size),) = result.payload["map"]
        assert mapped == number
        found = os.pread(result.descriptors[0], size, 0)[offset : offset + 16]
        assert np.frombuffer(found, np.float32).tolist() == [1, 2, 3, 4]
        os.close(result.descriptors[0])
        connection.close()

    def check_refused(self, connection: Connection, sequence: int = 0) -> dict:
        """The worker says why, and closes the connection."""
        try:
            error = connection.receive(PATIENCE)
            assert error.kind == ERROR
            assert error.sequence == sequence
            with pytest.raises(ConnectionClosed):
                connection.receive(PATIENCE)
        finally:
            connection.close()
        assert self.process.poll() is None
        return error.payload


def memory(content: bytes) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, content)
    return descriptor


def strings(*texts: str) -> bytes:
    data = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, data)]).astype("<u8")
    return offsets.tobytes() + b"".join(data)


def frame(
    payload: object = b"{}",
    kind: int = INFER,
    magic: bytes = b"INGW",
    version: int = 1,
    count: int = 0,
    length: int | None = None,
) -> bytes:
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    size = len(text) if length is None else length
    return struct.pack("<4sBBHII", magic, version, kind, count, size, 9) + text


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    made = Listener(tmp_path_factory.mktemp("listen"))
    yield made
    assert made.process.poll() is None
    made.process.terminate()
    try:
        assert made.process.wait(PATIENCE) == 0
    finally:
        made.process.kill()
        made.log.close()
    assert not made.path.exists()


def test_only_its_user_may_connect(listener: Listener) -> None:
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600
    listener.check_serves()
    if os.geteuid() != 0:
        return  # only root can become somebody else
    listener.path.parent.chmod(0o755)
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            listener.connect()
        except PermissionError:
            os._exit(3)
        finally:
            os._exit(4)  # it could connect
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    listener.check_serves()


def test_another_user_is_refused_whatever_the_file_says(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    folder = Path("/tmp") / f"ingot-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        listener = Listener(folder)
        listener.path.chmod(0o666)
        child = os.fork()
        if child == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                os._exit(3 if listener.connect().recv(100) == b"" else 4)
            finally:
                os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        listener.check_serves()
        listener.process.terminate()
        assert listener.process.wait(PATIENCE) == 0
        listener.log.seek(0)
        assert "refused a caller of the user 65534" in listener.log.read()
        listener.log.close()
    finally:
        import shutil

        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "starts with b'GET '"),
        (frame(magic=b"INGX"), "starts with b'INGX'"),
        (frame(version=2), "found protocol version 2; expected 1"),
        (frame(kind=0), "found a message of kind 0"),
        (frame(kind=7), "found a message of kind 7"),
        (frame(length=(64 << 20) + 1), "expected at most 67108864 and 64"),
        (frame(count=65), "65 file descriptors"),
        (frame(count=3), "found 0 file descriptors; expected 3"),
        (frame(b"[1]"), "no JSON object"),
        (frame(b"{"), "no JSON object"),
        (frame(b""), "no JSON object"),
        (frame(b"\xff\xff"), "no JSON object"),
        (frame(b"[" * 100_000), "no JSON object"),
        (frame(b"9" * 5000), "no JSON object"),
        (frame(kind=RESULT), "found a message RESULT; expected"),
        (frame(kind=HELLO), "found a message HELLO; expected"),
    ],
)
@pytest.mark.parametrize("after_load", [False, True])
def test_what_is_no_frame_is_refused(
    listener: Listener, data: bytes, message: str, after_load: bool
) -> None:
    connection = listener.loaded() if after_load else listener.caller()
    connection.socket.sendall(data)
    error = listener.check_refused(connection)
    assert error["type"] == "ProtocolError"
    assert message in error["message"]
    listener.check_serves()


def test_a_call_before_a_model_is_refused(listener: Listener) -> None:
    connection = listener.caller()
    connection.send(INFER, 9, {**CALL, "tensors": {}})
    assert "found a message INFER; expected LOAD" in listener.check_refused(connection)["message"]
    listener.check_serves()


def test_callers_that_go_away_are_no_trouble(listener: Listener) -> None:
    for data in (b"", b"ING", frame(b"{}" * 50)[:60], frame(length=1 << 20)):
        connection = listener.caller()
        connection.socket.sendall(data)
        connection.close()
    listener.connect().close()
    listener.check_serves()


ONE = [[1, 4096]]
X = {"how": [0, 0, "string", [0], 0]}


@pytest.mark.parametrize(
    ("payload", "sizes", "message"),
    [
        ({}, [], "map: found None; expected list"),
        ({**CALL}, [], "tensors: found None; expected dict"),
        ({**CALL, "tensors": [1]}, [], "tensors: found [1]; expected dict"),
        ({**CALL, "tensors": {"x": [1, 0, "float32", [4]]}}, [], "never introduced"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, 4095, "float32", [1]]}}, [4096], "from byte"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, 4032, "float32", [17]]}}, [4096], "has 4096"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, -64, "float32", [1]]}}, [4096], "byte -64"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, 0, "float32", [2**62, 4]]}}, [4096], "4096"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, 0, "float32", [-1]]}}, [4096], "expected block"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, 0, "float33", [1]]}}, [4096], "expected block"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, 0, [], [1]]}}, [4096], "expected block"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, 0, "float32", 3]}}, [4096], "expected block"),
        ({**CALL, "map": ONE, "tensors": {"x": [1, 0, "float32", [1] * 65]}}, [4096], "expected"),
        ({**CALL, "map": ONE, "tensors": {"x": [1.0, 0, "float32", [1]]}}, [4096], "expected"),
        ({**CALL, "map": ONE, "tensors": {"x": None}}, [4096], "expected block"),
        ({**CALL, "map": ONE, "tensors": {"how": [1, 0, "string", [600], 4096]}}, [4096], "string"),
        ({**CALL, "map": ONE, "tensors": {"how": [1, 0, "string", [1], 17]}}, [4096], "offsets"),
        ({**CALL, "map": ONE, "tensors": {"how": [1, 0, "string", [1], -8]}}, [4096], "expected"),
        ({**CALL, "map": [[1, 8192]], "tensors": {}}, [4096], "found a block of 4096 bytes"),
        ({**CALL, "map": [[1, 2**70]], "tensors": {}}, [4096], "found a block of 4096 bytes"),
        ({**CALL, "map": [[1, 0]], "tensors": {}}, [4096], "expected number and size"),
        ({**CALL, "map": [1], "tensors": {}}, [4096], "expected number and size"),
        ({**CALL, "map": [*ONE, *ONE], "tensors": {}}, [4096, 4096], "a second time"),
        ({**CALL, "map": ONE, "tensors": {}}, [], "1 blocks and 0 file descriptors"),
        ({**CALL, "map": [], "tensors": {}}, [4096], "0 blocks and 1 file descriptors"),
        ({**CALL, "map": {}, "tensors": {}}, [4096], "map: found {}"),
        ({**CALL, "free": [5], "tensors": {}}, [], "free: found the block 5"),
        ({**CALL, "free": 5, "tensors": {}}, [], "free: found 5; expected list"),
        ({**CALL, "drop": 5, "tensors": {}}, [], "drop: found 5; expected list"),
        ({**CALL, "free": [[]], "tensors": {}}, [], "free: found the block []"),
        ({**CALL, "map": ONE, "drop": [{}], "tensors": {}}, [4096], ""),
        ({**CALL, "tensors": {"x": [0, 0, "float32", [0, 2**62, 2**62]]}}, [], ""),
    ],
)
def test_malformed_calls_are_refused(
    listener: Listener, payload: dict, sizes: list[int], message: str
) -> None:
    before = len(open_files(listener.process.pid))
    connection = listener.loaded()
    blocks = [memory(b"\1" * size) for size in sizes]
    connection.send(INFER, 9, payload, blocks)
    for block in blocks:
        os.close(block)
    assert message in listener.check_refused(connection, 9)["message"]
    listener.check_serves()
    wait_until(
        lambda: len(open_files(listener.process.pid)) <= before,
        f"descriptors closed: {open_files(listener.process.pid)}",
    )


@pytest.mark.parametrize("path", ["not-there.ingot", "/", "", 5, None, ["a"]])
def test_what_cannot_be_loaded_is_refused(listener: Listener, path: object) -> None:
    before = len(open_files(listener.process.pid))
    for count in (0, 1, 2):
        connection = listener.caller()
        blocks = [memory(bytes(8)) for _ in range(count)]
        connection.send(LOAD, 4, {"path": path, "options": {"new": 1}}, blocks)
        for block in blocks:
            os.close(block)
        listener.check_refused(connection, 4)
    listener.check_serves()
    wait_until(lambda: len(open_files(listener.process.pid)) <= before, "descriptors closed")


def test_too_many_descriptors_are_refused_and_closed(listener: Listener) -> None:
    before = len(open_files(listener.process.pid))
    connection = listener.caller()
    rights = array.array("i", [0] * 200)
    message = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    connection.socket.sendmsg([frame(kind=LOAD, count=64)], message)
    assert "file descriptors" in listener.check_refused(connection)["message"]
    listener.check_serves()
    wait_until(lambda: len(open_files(listener.process.pid)) <= before, "descriptors closed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(["tensors", "outputs", "map", "drop", "free", "path", "options", "source"])
PAYLOADS = st.dictionaries(KEYS, JSON).map(lambda found: json.dumps(found).encode())
FRAMES = st.builds(
    frame,
    payload=PAYLOADS | st.binary(max_size=40),
    kind=st.integers(0, 8),
    version=st.sampled_from([1, 1, 1, 0]),
    count=st.integers(0, 2),
)


@settings(deadline=None, max_examples=80)
@given(st.booleans(), st.lists(FRAMES | st.binary(max_size=60), min_size=1, max_size=3))
def test_nothing_ends_the_worker(listener: Listener, load: bool, frames: list[bytes]) -> None:
    connection = listener.loaded() if load else listener.caller()
    try:
        for data in frames:
            connection.socket.sendall(data)
        connection.socket.shutdown(socket.SHUT_WR)
        while select.select([connection.socket], [], [], PATIENCE)[0]:
            if not connection.socket.recv(1 << 16):
                break
    except (BrokenPipeError, ConnectionResetError):
        pass
    connection.close()
    listener.caller().close()
    assert listener.process.poll() is None


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 2**32 - 1), st.dictionaries(st.text(), JSON)),
        max_size=5,
    ),
    st.integers(0, 5),
)
def test_frames_arrive_as_they_were_sent(sent: list[tuple], count: int) -> None:
    left, right = (Connection(sock) for sock in socket.socketpair())
    try:
        for kind, sequence, payload in sent:
            passed = count if kind in (LOAD, INFER, RESULT) else 0
            left.send(kind, sequence, payload, [0] * passed)
            message = right.receive(PATIENCE)
            assert (message.kind, message.sequence) == (kind, sequence)
            assert repr(message.payload) == repr(json.loads(json.dumps(payload)))
            assert len(message.descriptors) == passed
            for descriptor in message.descriptors:
                os.close(descriptor)
        with pytest.raises(TimeoutError):
            right.receive(0.001)
        left.close()
        with pytest.raises(ConnectionClosed):
            right.receive(PATIENCE)
        with pytest.raises(ConnectionClosed):
            right.send(HELLO, 0, {})
    finally:
        left.close()
        right.close()


def test_a_message_may_be_too_large_to_send() -> None:
    left, right = (Connection(sock) for sock in socket.socketpair())
    with pytest.raises(ProtocolError, match="expected at most"):
        left.send(HELLO, 0, {"text": "x" * (protocol.MOST_PAYLOAD + 1)})
    with pytest.raises(ProtocolError, match="65 blocks"):
        left.send(HELLO, 0, {}, [0] * 65)
    left.send(HELLO, 1, {})
    assert right.receive(PATIENCE).sequence == 1
    left.close()
    right.close()
