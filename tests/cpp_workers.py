"""Models that misbehave, and a worker that breaks the protocol; nothing here is a test."""

from __future__ import annotations

from typing import Any

OBEDIENT = """
    import os
    import signal
    import subprocess
    import sys
    import time


    def build():
        def model(what):
            word = what.item(0)
            if word == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif word == "fork and kill":
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                os.kill(os.getpid(), signal.SIGKILL)
            elif word == "exit":
                os._exit(7)
            elif word == "raise":
                raise ValueError("as you wish")
            elif word == "sleep":
                time.sleep(60)
            elif word == "print":
                print("this is for standard error")
                subprocess.run(["echo", "and this"])
            elif word == "read":
                assert sys.stdin.read() == ""
            return {"what": what}

        return model
"""

KEEPER = """
    import numpy as np


    def build():
        kept = []

        def model(x):
            kept.append(x)
            return {"out": np.array([sum(array[0] for array in kept)], np.float32)}

        return model
"""

SUMMING = """
    def build():
        return lambda **arrays: {"out": sum(arrays.values())}
"""


FAKE = """
    import array
    import json
    import os
    import socket
    import struct
    import sys

    plan = json.loads(os.environ["FAKE"])
    sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))


    def send(kind, sequence, payload, sizes=(), text=b"", header={}):
        data = json.dumps(payload).encode() if payload is not None else text
        files = []
        for size in sizes:
            files.append(os.memfd_create("fake"))
            os.ftruncate(files[-1], size)
            os.pwrite(files[-1], bytes.fromhex(plan.get("content", "")), 0)
        fields = {"magic": b"INGW", "version": 1, "kind": kind, "count": len(files)}
        fields |= {"length": len(data), "sequence": sequence} | header
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        sock.sendmsg([struct.pack("<4sBBHII", *fields.values()) + data], rights)


    def receive():
        header = sock.recv(16, socket.MSG_WAITALL)
        if len(header) < 16:
            sys.exit(0)
        sock.recv(struct.unpack("<4sBBHII", header)[4], socket.MSG_WAITALL)
        return struct.unpack("<4sBBHII", header)[5]


    if "raw" in plan:
        sock.sendall(bytes.fromhex(plan["raw"]))
        sys.exit(3)
    hello = plan.get("hello", {})
    if "magic" in hello:
        hello["magic"] = hello["magic"].encode()
    send(1, 0, {}, plan.get("hello_files", ()), header=hello)
    if "text" in plan:
        sequence = receive()
        send(3, sequence, None, text=bytes.fromhex(plan["text"]))
    else:
        sequence = receive()
        ready = {"name": "n", "platform": "p", "inputs": [], "outputs": []}
        ready |= plan.get("ready", {})
        ready = {key: value for key, value in ready.items() if value is not None}
        send(plan.get("kind", 3), sequence + plan.get("skip", 0), ready)
    for result in plan.get("results", ()):
        sequence = receive()
        send(5, sequence, {"map": [], "drop": [], **result[0]}, result[1])
    receive()
"""


def one(reference: Any, size: int = 4096, **more: Any) -> list[Any]:
    """Return a RESULT with a block and one tensor."""
    return [{"tensors": {"out": reference}, "map": [[1, size]], **more}, [4096]]


F = "float32"
HUGE = 2**62
BREACHES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"raw": ""}, "ended with exit code 3 before the model was loaded"),
    "half a header": ({"raw": "494e4757"}, "ended with exit code 3 before the model was loaded"),
    "another start": ({"hello": {"magic": "JUNK"}}, "no frame of Ingot's protocol"),
    "another version": ({"hello": {"version": 9}}, "speaks version 9 of the protocol; expected 1"),
    "unknown kind": ({"hello": {"kind": 77}}, "kind 77; expected 1 to 6"),
    "READY first": ({"hello": {"kind": 3}}, "no HELLO"),
    "too long": ({"hello": {"length": 2**32 - 1}}, "4294967295 bytes and 0 file descriptors"),
    "too many files": ({"hello": {"count": 65}}, "2 bytes and 65 file descriptors"),
    "missing files": ({"hello": {"count": 3}}, "sent 0 file descriptors; expected 3"),
    "unsaid files": ({"hello_files": [1], "hello": {"count": 0}}, "1 file descriptors; expected 0"),
    "half a document": ({"text": b'{"a":'.hex()}, "no JSON"),
    "a list": ({"text": b"[]".hex()}, "no JSON object"),
    "deep": ({"text": (b"[" * 10000).hex()}, "nested too deeply"),
    "latin-1": ({"text": '{"ä": 1}'.encode("latin-1").hex()}, "not UTF-8"),
    "another request": ({"skip": 5}, "an answer to request 6; expected 1"),
    "another reply": ({"kind": 5}, "a frame of kind 5; expected 3"),
    "no inputs": ({"ready": {"inputs": None}}, 'no key "inputs"'),
    "a dtype": ({"ready": {"inputs": [{"name": "x", "dtype": "q", "shape": []}]}}, 'dtype "q"'),
    "a shape": (
        {"ready": {"inputs": [{"name": "x", "dtype": F, "shape": [-2]}]}},
        "a size is no integer of 0 or more",
    ),
    "no map": ({"results": [[{"tensors": {}, "map": None}, []]]}, "map is no list"),
    "blocks": ({"results": [[{"tensors": {}, "map": [[1, 1]]}, []]]}, "1 blocks and 0 file"),
    "files": ({"results": [[{"tensors": {}}, [4096]]]}, "0 blocks and 1 file"),
    "a small block": ({"results": [one([1, 0, F, [1]], 4097)]}, "4096 bytes; expected 4097"),
    "block 0": ({"results": [[{"tensors": {}, "map": [[0, 1]]}, [1]]]}, "number of a block"),
    "twice": (
        {"results": [[{"tensors": {}, "map": [[1, 9], [1, 9]]}, [9, 9]]]},
        "block 1 twice",
    ),
    "no block": ({"results": [one([2, 0, F, [1]])]}, "no block 2"),
    "no output": ({"results": [[{"tensors": {}}, []]]}, "no output 'out'"),
    "a list of tensors": ({"results": [[{"tensors": []}, []]]}, "tensors are no object"),
    "not aligned": ({"results": [one([1, 4, F, [1]])]}, "expected a multiple of 64"),
    "before the block": ({"results": [one([1, -64, F, [1]])]}, "an offset is no integer"),
    "behind the block": ({"results": [one([1, 4096, F, [1]])]}, "bytes 4096 to 4096 + 4"),
    "too large": ({"results": [one([1, 64, F, [1009]])]}, "bytes 64 to 64 + 4036"),
    "overflow": ({"results": [one([1, 0, F, [HUGE]])]}, "shape [4611686018427387904]"),
    "overflows": ({"results": [one([1, 0, F, [HUGE, HUGE]])]}, "shape [46"),
    "overflow beside 0": ({"results": [one([1, 0, F, [HUGE, HUGE, 0]])]}, "shape [46"),
    "a float": ({"results": [one([1, 0, F, [1.5]])]}, "a size is no integer"),
    "true": ({"results": [one([True, 0, F, [1]])]}, "number of a block is no integer"),
    "complex": ({"results": [one([1, 0, "complex64", [1]])]}, "dtype 'complex64'"),
    "three parts": ({"results": [one([1, 0, F])]}, "found 3 entries; expected 4"),
    "no bytes": ({"results": [one([1, 0, "string", [1]])]}, "no number of bytes"),
    "few bytes": ({"results": [one([1, 0, "string", [1], 15])]}, "strings of 15 bytes"),
    "many bytes": ({"results": [one([1, 0, "string", [1], 4097])]}, "0 + 4097"),
    "a long string": (
        {"results": [one([1, 0, "string", [1], 20])], "content": "00" * 8 + "05" + "00" * 7},
        "string 0 is not within the 4 bytes",
    ),
    "backwards": (
        {"results": [one([1, 0, "string", [1], 20])], "content": "03" + "00" * 7 + "02"},
        "string 0 is not within the 4 bytes",
    ),
    "far away": (
        {"results": [one([1, 0, "string", [1], 20])], "content": "ff" * 16},
        "string 0 is not within the 4 bytes",
    ),
    "drop": ({"results": [one([1, 0, F, [1]], drop=[7])]}, "no block 7 to drop"),
}
