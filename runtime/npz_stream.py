"""Reads and writes large ``.npz`` files slice by slice, so that memory stays bounded."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ..errors import InputError, ModelError, UsageError
from ..specs import TensorSpec
from .golden import restore_dtype, write_npy

Array = np.ndarray[Any, Any]


class _ArrayStream:
    """One array of an ``.npz``, read from its start along the first dimension."""

    def __init__(self, file: IO[bytes], label: str) -> None:
        self._file = file
        self._label = label
        try:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            self.shape, self.fortran_order, self.dtype = read(file)
        except (ValueError, KeyError) as error:
            raise InputError(f"{label}: not a readable array: {error}") from error
        if self.dtype.hasobject:
            raise InputError(f"{label}: holds Python objects, which are never loaded")

    def read(self, rows: int) -> Array:
        """Return the next ``rows`` rows."""
        shape = (rows, *self.shape[1:])
        count = int(np.prod(shape)) * self.dtype.itemsize
        buffer = bytearray(count)
        view, filled = memoryview(buffer), 0
        while filled < count:
            got = self._file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not got:
                raise InputError(f"{self._label}: ends early, at {filled} of {count} bytes")
            filled += got
        return np.frombuffer(buffer, self.dtype).reshape(shape)


class SlicedInputs:
    """The inputs of a model in an ``.npz``, in slices along the batch dimension.

    An input is sliced when the first dimension of its spec is a symbol or any size; the others are
    read whole and handed to every call.

    Args:
        path: the ``.npz`` file.
        specs: the model's inputs.

    Raises:
        InputError: the file cannot be read, or sliced inputs have different lengths.
    """

    def __init__(self, path: Path, specs: tuple[TensorSpec, ...]) -> None:
        self._label = str(path)
        self._streams: dict[str, _ArrayStream] = {}
        self._whole: dict[str, Array] = {}
        self.rows = 0
        by_name = {spec.name: spec for spec in specs}
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a readable .npz file: {error}") from error
        lengths: dict[str, int] = {}
        for member in self._archive.namelist():
            name = member.removesuffix(".npy")
            spec = by_name.get(name)
            stream = _ArrayStream(self._archive.open(member), f"{path}: {name}")
            if _is_sliced(spec) and stream.shape and not stream.fortran_order:
                self._streams[name] = stream
                lengths[name] = stream.shape[0]
            else:
                self._whole |= _read_one(path, name)
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} has {count}" for name, count in lengths.items())
            raise InputError(f"{path}: inputs of different lengths cannot be batched: {found}")
        if not lengths:
            raise UsageError(
                f"{path}: no input has a first dimension of any size: --batch-size cannot be used"
            )
        self.rows = next(iter(lengths.values()))
        self._specs = specs

    def slices(self, size: int) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield the number of rows and the inputs of each slice of at most ``size`` rows."""
        for start in range(0, self.rows, size):
            rows = min(size, self.rows - start)
            arrays = {
                name: restore_dtype(stream.read(rows), name, self._specs)
                for name, stream in self._streams.items()
            }
            yield rows, {**self._whole, **arrays}

    def close(self) -> None:
        """Close the file."""
        self._archive.close()


def _is_sliced(spec: TensorSpec | None) -> bool:
    if spec is None:
        return False
    return spec.shape is None or (len(spec.shape) > 0 and not isinstance(spec.shape[0], int))


def _read_one(path: Path, name: str) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name]}


class SlicedOutputs:
    """Writes outputs that come in slices into one ``.npz``; a context manager.

    Each output grows in a temporary file beside the target, and :meth:`commit` joins them; strings,
    whose width is known only at the end, are kept in memory. Leaving the context without a commit
    removes everything.

    Args:
        path: the ``.npz`` to make.
        rows: rows of all slices together.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self._rows = rows
        self._folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        self._files: dict[str, IO[bytes]] = {}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._strings: dict[str, list[Array]] = {}

    def __enter__(self) -> SlicedOutputs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, rows: int, outputs: Mapping[str, Array]) -> None:
        """Append one slice.

        Raises:
            ModelError: an output does not have one row an input row, or changes its shape.
        """
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != rows:
                raise ModelError(
                    f"output {name!r}: found shape {array.shape} for {rows} input rows;"
                    " --batch-size needs outputs of one row an input row"
                )
            known = self._kinds.setdefault(name, (array.dtype, array.shape[1:]))
            is_string = array.dtype.kind == "U"
            if array.shape[1:] != known[1] or (array.dtype != known[0] and not is_string):
                raise ModelError(
                    f"output {name!r}: found {array.dtype} {array.shape[1:]} in one slice and"
                    f" {known[0]} {known[1]} in another; they cannot be joined"
                )
            if is_string:
                self._strings.setdefault(name, []).append(array)
                continue
            if name not in self._files:
                self._files[name] = (self._folder / f"{len(self._files)}.bin").open("w+b")
            self._files[name].write(np.ascontiguousarray(array).view(np.uint8).data)

    def commit(self) -> None:
        """Join the outputs into the target."""
        joined = self._folder / "joined.npz"
        with zipfile.ZipFile(joined, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(self._kinds):
                info = zipfile.ZipInfo(f"{name}.npy", (2000, 1, 1, 0, 0, 0))
                with archive.open(info, "w", force_zip64=True) as member:
                    if name in self._strings:
                        write_npy(member, np.concatenate(self._strings[name]))
                    else:
                        self._copy(name, member)
        joined.chmod(0o644)
        joined.replace(self._path)

    def _copy(self, name: str, member: IO[bytes]) -> None:
        dtype, rest = self._kinds[name]
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (self._rows, *rest),
        }
        np.lib.format.write_array_header_1_0(member, header)
        file = self._files[name]
        file.seek(0)
        shutil.copyfileobj(file, member, 1 << 20)
