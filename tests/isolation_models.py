"""Models for the tests of worker processes, some of which behave badly; nothing here is a test."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from models import write

PATIENCE = 60.0
"""Seconds that a busy machine may take for what a free one does at once."""

MOODS = '''
import ctypes
import os
import signal
import sys
import time

import numpy as np

hoard = []


def build():
    return model


def model(x, how):
    """Do as ``how`` says, and return ``x + 1`` and the number of the process."""
    order, _, argument = str(how).partition(":")
    if order == "sleep":
        print("asleep", file=sys.stderr, flush=True)
        time.sleep(float(argument))
    elif order == "sleep-in-c":  # with the interpreter lock held
        print("asleep", file=sys.stderr, flush=True)
        ctypes.PyDLL(None).sleep(int(argument))
    elif order == "segfault":
        ctypes.string_at(8)
    elif order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "exit":
        os._exit(int(argument))
    elif order == "leave":
        sys.exit(int(argument))
    elif order == "print":
        print(argument)
        os.write(1, argument.encode())
    elif order == "allocate":
        hoard.append(np.ones(int(argument) << 20, np.uint8))
        time.sleep(600)
    elif order == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
        return {"out": x + 1, "pid": np.int64(child)}
    elif order == "fork-and-segfault":
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        ctypes.string_at(8)
    elif order == "raise":
        raise ValueError(argument)
    elif order == "write":
        x[:] = -1
    elif order == "grow":
        return {"out": np.repeat(x, int(argument)), "pid": np.int64(os.getpid())}
    elif order == "wrong":
        return {"out": x.astype("float64"), "pid": np.int64(os.getpid())}
    return {"out": x + 1, "pid": np.int64(os.getpid())}
'''

MOODS_TENSORS = """
inputs:
  - {name: x, dtype: float32, shape: [n]}
  - {name: how, dtype: string, shape: []}
outputs:
  - {name: out, dtype: float32, shape: [null]}
  - {name: pid, dtype: int64, shape: []}
"""


def python_model(folder: Path, code: str, tensors: str, name: str = "model") -> Path:
    """Write a Python model whose entry point is ``build``; return its spec."""
    write(folder / f"{name}_code.py", code)
    text = f"name: {name}\nmodel: {{framework: python, entrypoint: {name}_code:build}}\n"
    return write(folder / f"{name}.yaml", text + tensors)


def moods(folder: Path) -> Path:
    """Write the model that behaves as its input ``how`` says."""
    return python_model(folder, MOODS, MOODS_TENSORS, "moods")


def inputs(how: str = "", count: int = 4) -> dict[str, np.ndarray]:
    """Return inputs of :func:`moods`."""
    return {"x": np.arange(count, dtype=np.float32), "how": np.array(how)}


def identity(folder: Path, dtype: str) -> Path:
    """Write a model that returns its inputs themselves: ``x`` of rank 3, ``scalar`` of rank 0."""
    tensors = f"""
inputs:
  - {{name: x, dtype: {dtype}, shape: [null, null, null]}}
  - {{name: scalar, dtype: {dtype}, shape: [], optional: true}}
outputs:
  - {{name: x, dtype: {dtype}, shape: [null, null, null]}}
  - {{name: scalar, dtype: {dtype}, shape: []}}
"""
    code = "def build():\n    return lambda x, scalar=None: {'x': x, 'scalar': scalar}\n"
    return python_model(folder, code, tensors, f"identity_{dtype}")


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    """Wait for a condition, and fail when it does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"this did not happen: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be asked how is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and alive(int(folder.name)):
            try:
                text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent = int(text.rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    found = parents.get(pid, [])
    for child in found:
        found.extend(parents.get(child, []))
    return found


def shared_memory() -> set[str]:
    """Return the names in ``/dev/shm`` that are ours: other programs use it, too."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if path.name.startswith(("ingot", "psm_"))}


def open_files(pid: int | str = "self") -> dict[str, str]:
    """Return what the file descriptors of a process refer to, by number."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[link.name] = os.readlink(link)
        except FileNotFoundError:  # the one that lists the folder
            continue
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that no process, thread, descriptor or shared memory is left of what is done within."""
    gc.collect()
    processes, names = set(descendants(os.getpid())), shared_memory()
    files, threads = len(open_files()), set(threading.enumerate())
    yield
    gc.collect()
    wait_until(lambda: set(descendants(os.getpid())) <= processes, "all processes ended")
    wait_until(lambda: set(threading.enumerate()) <= threads, "all threads ended")
    gc.collect()
    wait_until(lambda: len(open_files()) <= files, f"descriptors closed: {open_files()}")
    assert shared_memory() <= names


def start_program(text: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start a Python program that imports ingot."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Check that two results are equal bit for bit, in types, shapes and order."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()
