"""Shared memory without a name: blocks that are made, passed on as file descriptors, and mapped.

The system frees such a block when the last process that maps it is gone, however that ended.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from ...errors import IngotError

ALIGNMENT = 64
"""Tensors start at multiples of this many bytes, as vector instructions want it."""

_PAGE = mmap.PAGESIZE
_FREE_BLOCKS = 16
_FREE_BYTES = 256 << 20
_SMALL = 64 << 20
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong if ctypes.sizeof(ctypes.c_long) == 8 else ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class SharedMemoryError(IngotError):
    """There is no shared memory left."""


def aligned(size: int) -> int:
    """Round a number of bytes up to the alignment of tensors."""
    return (size + ALIGNMENT - 1) & -ALIGNMENT


def _rounded(size: int) -> int:
    """Round a size up to one of eight steps for each power of two, so that blocks can be reused."""
    step = max(_PAGE, 1 << max(0, size.bit_length() - 4))
    return max(_PAGE, (size + step - 1) // step * step)


class Mapping:
    """Shared memory that this process has mapped, until nothing refers to it any more.

    Python's own ``mmap`` would keep a file descriptor open for each one.

    Attributes:
        address: where it starts.
        size: its bytes.
        bytes: all of it, ``(size,)`` uint8.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        address = _libc.mmap(
            None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0
        )
        if address in (None, _FAILED):
            code = ctypes.get_errno()
            raise SharedMemoryError(
                f"cannot map {size} bytes of shared memory: {os.strerror(code)}"
            )
        self.address: int = address
        self.size = size

    @property
    def bytes(self) -> np.ndarray[Any, Any]:
        return np.asarray(Tensor(self, 0, "|u1", (self.size,)))

    def __del__(self, munmap: Any = _libc.munmap) -> None:
        if hasattr(self, "address"):
            munmap(self.address, self.size)


class Tensor:
    """Memory of one tensor, which NumPy takes as an array and keeps alive with it.

    Args:
        mapping: the memory, or what owns one.
        offset: its first byte.
        typestr: NumPy's type string.
        shape: its sizes.
    """

    __slots__ = ("__array_interface__", "__weakref__", "owner")

    def __init__(self, mapping: Any, offset: int, typestr: str, shape: tuple[int, ...]) -> None:
        self.owner = mapping
        self.__array_interface__ = {
            "data": (mapping.address + offset, False),
            "typestr": typestr,
            "shape": shape,
            "version": 3,
        }


def owner_of(array: np.ndarray[Any, Any]) -> Any:
    """Return what owns the memory of an array or view made from a :class:`Tensor`; else None."""
    base: Any = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base.owner if type(base) is Tensor else None


def create(size: int) -> int:
    """Make shared memory without a name, whose pages are reserved; return its file descriptor.

    ``INGOT_SHARED_MEMORY`` names a folder (of a tmpfs) that is used in place of anonymous memory.

    Raises:
        SharedMemoryError: there is not enough memory.
    """
    folder = os.environ.get("INGOT_SHARED_MEMORY")
    where = folder or "anonymous shared memory"
    descriptor = -1
    try:
        _require_available(size)
        if folder or not hasattr(os, "memfd_create"):
            descriptor, path = tempfile.mkstemp(prefix="ingot-", dir=folder or _folder())
            os.unlink(path)
        else:
            descriptor = os.memfd_create("ingot", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        full = error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)
        raise SharedMemoryError(
            f"cannot make a block of {size} bytes for tensors ({where}): {error.strerror}",
            hint="send smaller batches, drop outputs that are no longer needed, or give the machine"
            " (the container, the control group) more memory"
            if full
            else "allocate fewer, larger inputs"
            if error.errno in (errno.EMFILE, errno.ENFILE)
            else None,
        ) from error
    return descriptor


def _require_available(size: int) -> None:
    """Raise what the system does not: it would rather kill processes than refuse these pages."""
    if size < _SMALL:
        return
    found = [_number("/proc/meminfo", "MemAvailable:", 1024)]
    limit = _number("/sys/fs/cgroup/memory.max", "", 1)
    if limit is not None:
        found.append(max(0, limit - (_number("/sys/fs/cgroup/memory.current", "", 1) or 0)))
    known = [number for number in found if number is not None]
    if known and size > min(known):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def _number(path: str, key: str, unit: int) -> int | None:
    """Return the number after a key of a file of the kernel's, in bytes; None without one."""
    with suppress(OSError, ValueError, IndexError), open(path, encoding="ascii") as file:
        for line in file:
            if line.startswith(key):
                return int(line[len(key) :].split()[0]) * unit
    return None


def _folder() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def map_received(descriptor: int, size: int) -> Mapping:
    """Map a block that the other side made, and close its descriptor.

    Raises:
        SharedMemoryError: it is smaller than was said, or cannot be mapped.
    """
    try:
        found = os.fstat(descriptor).st_size
        if not 0 < size <= found:
            raise SharedMemoryError(f"found a block of {found} bytes; expected {size}")
        return Mapping(descriptor, size)
    finally:
        os.close(descriptor)


class Block:
    """A block that this side made.

    Attributes:
        number: its number in messages.
        size: its bytes.
        address: where it starts here.
        bytes: all of it, ``(size,)`` uint8.
        descriptor: its file descriptor.
        owner: the blocks that it belongs to.
        kept: the other side goes on reading it, so that it cannot be used again.
    """

    def __init__(self, owner: Blocks, number: int, size: int) -> None:
        self.owner = owner
        self.number = number
        self.size = size
        self.kept = False
        self.descriptor = -1
        self.descriptor = create(size)
        try:
            mapping = Mapping(self.descriptor, size)
        except BaseException:
            self.close()
            raise
        self.address = mapping.address
        self.bytes = mapping.bytes

    def close(self) -> None:
        """Close the descriptor; the memory stays mapped as long as an array refers to it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        self.close()


class Lease:
    """Use of a block by arrays; its block can be taken again when the last of them is gone."""

    __slots__ = ("__weakref__", "address", "block", "give")

    def __init__(self, block: Any, address: int, give: Callable[[Any], None]) -> None:
        self.block = block
        self.address = address
        self.give = give

    def __del__(self) -> None:
        self.give(self.block)


class Blocks:
    """The blocks of one side, reused from call to call; safe for threads.

    Args:
        on_drop: is told the number of a block that will not be used again.
    """

    def __init__(self, on_drop: Callable[[int], None]) -> None:
        self._on_drop = on_drop
        self._lock = threading.Lock()
        # A lease may end in a garbage collection, in the very thread that holds the lock: what is
        # given back waits here until somebody has it.
        self._returned: deque[Block] = deque()
        self._free: list[Block] = []
        self._free_bytes = 0
        self._last = 0
        self._closed = False

    def take(self, size: int) -> Block:
        """Return a block of at least this many bytes, which nothing else uses.

        Raises:
            SharedMemoryError: there is no memory left.
        """
        wanted = _rounded(size)
        with self._lock:
            self._sort_in()
            fitting = [block for block in self._free if wanted <= block.size <= 2 * wanted]
            if fitting:
                best = min(fitting, key=lambda block: block.size)
                self._free.remove(best)
                self._free_bytes -= best.size
                return best
            self._last += 1
            number = self._last
        try:
            return Block(self, number, wanted)
        except SharedMemoryError:
            with self._lock:
                if not self._trim(0, 0):
                    raise
            return Block(self, number, wanted)

    def give(self, block: Block) -> None:
        """Take back a block."""
        self._returned.append(block)
        if self._lock.acquire(blocking=False):
            try:
                self._sort_in()
            finally:
                self._lock.release()

    def _sort_in(self) -> None:
        """Put what was given back among the free blocks, of which only so many are kept."""
        while self._returned:
            block = self._returned.popleft()
            if self._closed:
                block.close()
            elif block.kept:
                self._forget(block)
            else:
                self._free.append(block)
                self._free_bytes += block.size
        if len(self._free) > _FREE_BLOCKS or self._free_bytes > _FREE_BYTES:
            self._trim(_FREE_BLOCKS // 2, _FREE_BYTES // 2)

    def _trim(self, most: int, most_bytes: int) -> bool:
        """Forget the free blocks that were used longest ago; return whether there were any."""
        found = False
        while self._free and (len(self._free) > most or self._free_bytes > most_bytes):
            block = self._free.pop(0)
            self._free_bytes -= block.size
            self._forget(block)
            found = True
        return found

    def _forget(self, block: Block) -> None:
        block.close()
        self._on_drop(block.number)

    def close(self) -> None:
        """Forget all blocks; those still in use when they are given back."""
        with self._lock:
            self._closed = True
            self._returned.extend(self._free)
            self._free.clear()
            self._free_bytes = 0
            self._sort_in()
