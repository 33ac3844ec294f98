"""Reads and writes NumPy's ``.npy`` and ``.npz`` files, none of them trusted."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import InputError
from ..specs.dtypes import numpy_dtype
from ..specs.tensors import TensorSpec
from .archive_reader import BOMB_RATIO

Array = np.ndarray[Any, Any]

_NPY_MAGIC = b"\x93NUMPY"
_NPY_START = len(_NPY_MAGIC) + 2
_NPY_VERSIONS: dict[tuple[int, int], tuple[int, Callable[[IO[bytes]], Any]]] = {
    (1, 0): (2, np.lib.format.read_array_header_1_0),
    (2, 0): (4, np.lib.format.read_array_header_2_0),
}
_MAX_NPY_HEADER = 64 << 10
_BLOCK = 1 << 20
_BOMB_FLOOR = 256 << 20
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,  # encryption, recursion, a compression that zipfile lacks
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def dump_npz(arrays: Mapping[str, Array]) -> bytes:
    """Return an ``.npz`` (stored, sorted, times fixed) that NumPy reads without pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            info = zipfile.ZipInfo(f"{name}.npy", (2000, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as member:
                write_npy(member, arrays[name])
    return buffer.getvalue()


def write_npy(file: IO[bytes], array: Array) -> None:
    """Write one array in NumPy's ``.npy`` format; object arrays of strings become unicode ones."""
    if array.dtype.kind == "O":
        array = array.astype(np.str_)
    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


class NpyReader:
    """An array in the ``.npy`` format, read from its start along the first dimension.

    Args:
        file: a binary stream at its start.
        size: bytes that the stream holds.
        label: what is read, for messages.

    Attributes:
        shape: its shape.
        dtype: its element type.
        fortran_order: whether the first dimension, not the last, is the one of adjacent values.

    Raises:
        InputError: it is no array, has another length than its header says, or holds objects.
    """

    def __init__(self, file: IO[bytes], size: int, label: str) -> None:
        self._file = file
        self._label = label
        with _readable(label):
            start = file.read(_NPY_START)
            if len(start) != _NPY_START or not start.startswith(_NPY_MAGIC):
                raise InputError(f"{label}: found {size} bytes that are no array")
            version = (start[6], start[7])
            if version not in _NPY_VERSIONS:
                raise InputError(
                    f"{label}: found format {version[0]}.{version[1]}; expected 1.0 or 2.0"
                )
            width, parse = _NPY_VERSIONS[version]
            field = _read_bytes(file, width)
            length = int.from_bytes(field, "little")
            if length > _MAX_NPY_HEADER:
                raise InputError(
                    f"{label}: found a header of {length} bytes; expected at most {_MAX_NPY_HEADER}"
                )
            header = io.BytesIO(field + _read_bytes(file, length))
        try:
            shape, self.fortran_order, self.dtype = parse(header)
        except Exception as error:  # NumPy's parser promises no class of errors
            raise InputError(f"{label}: damaged header: {_one_line(error)}") from error
        self.shape: tuple[int, ...] = tuple(shape)
        if self.dtype.hasobject:
            raise InputError(f"{label}: holds Python objects, which are never loaded")
        if self.dtype.subdtype is not None or any(dim < 0 for dim in self.shape):
            raise InputError(f"{label}: found {self.dtype} {self.shape}, which is no array")
        found = size - _NPY_START - width - length
        expected = math.prod(self.shape) * self.dtype.itemsize
        if found != expected:
            raise InputError(
                f"{label}: found {found} bytes of values; expected {expected} for"
                f" {self.dtype} {self.shape}"
            )

    def read(self, rows: int) -> Array:
        """Return the next ``rows`` rows of an array in C order.

        Raises:
            InputError: they cannot be read.
        """
        return self._read((rows, *self.shape[1:]))

    def read_all(self) -> Array:
        """Return the whole array, of which nothing may be read yet.

        Raises:
            InputError: it cannot be read.
        """
        if self.fortran_order:
            return self._read(self.shape[::-1]).T
        return self._read(self.shape)

    def _read(self, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape) * self.dtype.itemsize
        if size == 0:
            return np.zeros(shape, self.dtype)
        with _readable(self._label):
            buffer = bytearray(size)
            view, filled = memoryview(buffer), 0
            while filled < size:
                # A member of a zip reads through a copy of what is asked for.
                block = self._file.read(min(_BLOCK, size - filled))
                if not block:
                    raise InputError(f"{self._label}: ends early, at {filled} of {size} bytes")
                view[filled : filled + len(block)] = block
                filled += len(block)
            return np.frombuffer(buffer, self.dtype).reshape(shape)


def _read_bytes(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError(f"it ends within its header, {count - len(data)} bytes early")
    return data


@contextlib.contextmanager
def _readable(label: str) -> Iterator[None]:
    """Turn whatever damaged data raises in NumPy, ``zipfile`` and ``zlib`` into an InputError."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{label}: too large for the memory of this machine") from error
    except OSError as error:
        raise InputError(f"{label}: cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise InputError(f"{label}: damaged: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class NpzReader:
    """The arrays of an ``.npz``, each opened on its own, without pickle; a context manager.

    Args:
        file: the archive.
        label: what to call it in messages.

    Attributes:
        names: the arrays, in the order of the archive.

    Raises:
        InputError: it is no ``.npz``, or two of its arrays have one name.
    """

    def __init__(self, file: Path | IO[bytes], label: str) -> None:
        self._label = label
        self._members: dict[str, zipfile.ZipInfo] = {}
        with contextlib.ExitStack() as stack:
            with _readable(label):
                source = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
                start = source.read(len(_NPY_MAGIC))
                if start == _NPY_MAGIC:
                    raise InputError(f"{label}: found a single array; expected an .npz archive")
                self._size = source.seek(0, io.SEEK_END)
                source.seek(0)
                try:
                    self._archive = stack.enter_context(zipfile.ZipFile(source))
                except zipfile.BadZipFile as error:
                    raise InputError(f"{label}: not a readable .npz file: {error}") from error
            for info in self._archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in self._members:
                    raise InputError(f"{label}: found two members named {name!r}")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise InputError(
                        f"{label}: member {name!r}: found compression method"
                        f" {info.compress_type}; expected none, or deflate"
                    )
                self._members[name] = info
            self._stack = stack.pop_all()
        self.names = tuple(self._members)

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive."""
        self._stack.close()

    def open(self, name: str) -> NpyReader:
        """Return a reader of one array.

        Raises:
            InputError: the member is no array, or damaged.
        """
        info = self._members[name]
        label = f"{self._label}: member {name!r}"
        with _readable(label):
            file = self._stack.enter_context(self._archive.open(info))
        return NpyReader(file, info.file_size, label)

    def refuse_bombs(self, names: Iterable[str]) -> None:
        """Check that these arrays, which are to be read whole, do not inflate out of proportion.

        Raises:
            InputError: one, or all of them together, are above 256 MiB and 200 times the data.
        """
        total = 0
        for name in names:
            info = self._members[name]
            total += info.file_size
            self._refuse_bomb(f"member {name!r}", info.file_size, info.compress_size)
        self._refuse_bomb("its members", total, self._size)

    def _refuse_bomb(self, what: str, size: int, packed: int) -> None:
        if size > _BOMB_FLOOR and size > BOMB_RATIO * packed:
            raise InputError(
                f"{self._label}: {what}: {packed} bytes inflate to {size}; expected at most"
                f" {BOMB_RATIO} times as many"
            )


def read_npz(file: Path | IO[bytes], label: str) -> dict[str, Array]:
    """Read every array of an ``.npz``, without pickle.

    Args:
        file: the archive.
        label: what to call it in messages.

    Raises:
        InputError: it is no ``.npz``, is damaged, inflates out of proportion, or holds Python
            objects or what is no array.
    """
    with NpzReader(file, label) as archive:
        archive.refuse_bombs(archive.names)
        return {name: archive.open(name).read_all() for name in archive.names}


def read_npz_headers(
    file: Path | IO[bytes], label: str
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Read the dtype and shape of every array of an ``.npz``, and none of their values.

    Args:
        file: the archive.
        label: what to call it in messages.

    Raises:
        InputError: it is no ``.npz``, is damaged, or holds Python objects or what is no array.
    """
    with NpzReader(file, label) as archive:
        readers = {name: archive.open(name) for name in archive.names}
        return {name: (reader.dtype, reader.shape) for name, reader in readers.items()}


def read_npy(path: Path, label: str) -> Array:
    """Read a ``.npy`` file, without pickle.

    Raises:
        InputError: it cannot be read, is damaged, or holds Python objects or another format.
    """
    with contextlib.ExitStack() as stack:
        with _readable(label):
            file = stack.enter_context(path.open("rb"))
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if file.read(4) == b"PK\x03\x04":
                raise InputError(f"{label}: found an .npz archive; expected a .npy file")
            file.seek(0)
        return NpyReader(file, size, label).read_all()


def restore_dtype(array: Array, name: str, specs: Sequence[TensorSpec]) -> Array:
    """Undo what ``.npy`` does to bfloat16: it comes back as two raw bytes a value."""
    if array.dtype == np.dtype("V2") and any(
        spec.name == name and spec.dtype == "bfloat16" for spec in specs
    ):
        return array.view(numpy_dtype("bfloat16"))
    return array
