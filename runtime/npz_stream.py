"""Reads and writes large ``.npz`` files slice by slice, so that memory stays bounded."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ..errors import IngotError, InputError, ModelError, UsageError
from ..specs import TensorSpec
from ..specs.tensors import Dimension, format_shape
from .npz import NpyReader, NpzReader, restore_dtype, write_npy

Array = np.ndarray[Any, Any]


class SlicedInputs:
    """The inputs of a model, in slices along the batch dimension; a context manager.

    The batch dimension is the symbol that is the first dimension of inputs in the ``.npz``; every
    input that starts with it is sliced. Where no input there starts with a symbol, it is the first
    dimension of the only one that starts with any size (null). All other inputs are read whole and
    handed to every call. An array in Fortran order is read whole too, and then sliced.

    Args:
        path: the ``.npz`` file.
        specs: the model's inputs.
        given: inputs that come on top of the file.

    Attributes:
        symbol: the symbol of the batch dimension; None when its spec has null there.
        rows: rows of all slices together.

    Raises:
        InputError: the file cannot be read, or sliced inputs have different lengths.
        UsageError: the batch dimension is not clear.
    """

    def __init__(
        self, path: Path, specs: Sequence[TensorSpec], given: Mapping[str, Any] | None = None
    ) -> None:
        self._specs = specs
        self._label = str(path)
        self._streams: dict[str, NpyReader] = {}
        self._arrays: dict[str, Array] = {}
        given = given or {}
        self._whole: dict[str, Any] = dict(given)
        self._archive = NpzReader(path, self._label)
        try:
            self._open(given)
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> SlicedInputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def _open(self, given: Mapping[str, Any]) -> None:
        names = [name for name in self._archive.names if name not in given]
        present = [spec for spec in self._specs if spec.name in names]
        self.symbol, sliced = _find_batch(present, self._label)
        if self.symbol is not None:
            every = [spec for spec in self._specs if spec.name in names or spec.name in given]
            sliced = [spec.name for spec in every if _first(spec) == self.symbol]
            _refuse_elsewhere(every, "input", self.symbol)
        in_memory = []
        for name in names:
            reader = self._archive.open(name)
            if name in sliced and reader.shape and not reader.fortran_order:
                self._streams[name] = reader
            else:
                in_memory.append(name)
        self._archive.refuse_bombs(in_memory)
        for name in in_memory:
            array = self._archive.open(name).read_all()
            self._whole[name] = restore_dtype(array, name, self._specs)
        for name in sliced:
            if name not in self._streams:
                self._arrays[name] = _to_array(self._whole.pop(name), name)
        self.rows = self._count_rows()

    def _count_rows(self) -> int:
        shapes = {name: stream.shape for name, stream in self._streams.items()}
        shapes |= {name: array.shape for name, array in self._arrays.items()}
        for name, shape in shapes.items():
            if not shape:
                raise InputError(
                    f"{self._label}: input {name!r}: found a scalar; expected rows to slice"
                )
        if len({shape[0] for shape in shapes.values()}) > 1:
            found = ", ".join(f"{name} has {shape[0]}" for name, shape in shapes.items())
            raise InputError(
                f"{self._label}: inputs of different lengths cannot be batched: {found}"
            )
        return next(iter(shapes.values()))[0]

    def slices(self, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of rows and the inputs of each slice; no rows make one empty slice.

        Args:
            size: rows of a slice; the last one may have fewer.

        Raises:
            InputError: the file is damaged.
        """
        for start in range(0, max(self.rows, 1), size):
            rows = min(size, self.rows - start)
            inputs = dict(self._whole)
            for name, stream in self._streams.items():
                inputs[name] = restore_dtype(stream.read(rows), name, self._specs)
            for name, array in self._arrays.items():
                inputs[name] = array[start : start + rows]
            yield rows, inputs


def _first(spec: TensorSpec) -> Dimension:
    return spec.shape[0] if spec.shape else None


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _find_batch(specs: Sequence[TensorSpec], label: str) -> tuple[str | None, list[str]]:
    """Return the symbol of the batch dimension, or None, and the inputs that start with it."""
    symbols: dict[str, list[str]] = {}
    unknown = []
    for spec in specs:
        first = _first(spec)
        if isinstance(first, str):
            symbols.setdefault(first, []).append(spec.name)
        elif first is None and spec.shape != ():
            unknown.append(spec.name)
    hint = "pass those that stay whole with -i, or give the batch dimension one symbol in the spec"
    if len(symbols) > 1:
        found = "; ".join(f"{symbol!r} of {_names(names)}" for symbol, names in symbols.items())
        raise UsageError(
            f"{label}: --batch-size: found several first dimensions, {found};"
            " expected one that all sliced inputs share",
            hint=hint,
        )
    if symbols:
        return next(iter(symbols.items()))
    if len(unknown) > 1:
        raise UsageError(
            f"{label}: --batch-size: {_names(unknown)} each have a first dimension of any size;"
            " which of them belong to the batch is not known",
            hint=hint,
        )
    if not unknown:
        raise UsageError(
            f"{label}: no input has a first dimension of any size: --batch-size cannot be used"
        )
    return None, unknown


def _refuse_elsewhere(specs: Iterable[TensorSpec], kind: str, symbol: str) -> None:
    for spec in specs:
        if spec.shape and symbol in spec.shape[1:]:
            raise UsageError(
                f"--batch-size: {kind} {spec.name!r} is {format_shape(spec.shape)}: the batch"
                f" dimension {symbol!r} is not only its first, so that slices differ from the whole"
            )


def _to_array(value: Any, name: str) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"input {name!r}: the nested lists are not of equal lengths") from error


def check_joinable(
    outputs: Iterable[TensorSpec], wanted: Sequence[str] | None, symbol: str | None
) -> None:
    """Check that outputs of slices can be joined into those of the whole batch.

    Args:
        outputs: the model's outputs.
        wanted: names of those that are computed; None means all.
        symbol: the batch dimension of the inputs; None when it has no symbol.

    Raises:
        UsageError: an output does not start with the batch dimension, or has it elsewhere too.
    """
    asked = [spec for spec in outputs if wanted is None or spec.name in wanted]
    for spec in asked:
        first = _first(spec)
        if spec.shape == () or (first is not None and first != symbol):
            expected = "any size" if symbol is None else repr(symbol)
            raise UsageError(
                f"--batch-size: output {spec.name!r} is {format_shape(spec.shape)}, so its slices"
                f" cannot be joined; expected a first dimension of {expected}",
                hint="select other outputs with --output",
            )
    if symbol is not None:
        _refuse_elsewhere(asked, "output", symbol)


class SlicedOutputs:
    """Writes outputs that come in slices into one ``.npz``; a context manager.

    Each output grows in a temporary file beside the target, and :meth:`commit` joins them; strings,
    whose width is known only at the end, are kept in memory. Leaving the context without a commit
    removes everything.

    Args:
        path: the ``.npz`` to make.
        rows: rows of all slices together.

    Raises:
        IngotError: its folder cannot be written.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path = path
        self._rows = rows
        stem = os.fsencode(path.name)[:200].decode(errors="ignore")
        with self._writing():
            self._folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{stem}."))
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
            # On a full disk, what is still buffered fails once more.
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, rows: int, outputs: Mapping[str, Array]) -> None:
        """Append one slice.

        Raises:
            ModelError: an output does not have one row an input row, or changes its shape.
            IngotError: it cannot be written.
        """
        for name, array in outputs.items():
            if array.dtype.kind == "O":
                array = array.astype(np.str_)
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
            with self._writing():
                if name not in self._files:
                    self._files[name] = (self._folder / f"{len(self._files)}.bin").open("w+b")
                self._files[name].write(np.ascontiguousarray(array).view(np.uint8).data)

    def commit(self) -> None:
        """Join the outputs into the target.

        Raises:
            IngotError: it cannot be written.
        """
        joined = self._folder / "joined.npz"
        with self._writing(), zipfile.ZipFile(joined, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(self._kinds):
                info = zipfile.ZipInfo(f"{name}.npy", (2000, 1, 1, 0, 0, 0))
                with archive.open(info, "w", force_zip64=True) as member:
                    if name in self._strings:
                        write_npy(member, np.concatenate(self._strings[name]))
                    else:
                        self._copy(name, member)
        with self._writing():
            joined.replace(self._path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise IngotError(f"{self._path}: cannot be written: {reason}") from error

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
