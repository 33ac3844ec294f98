"""Images that a CSV lists with their labels: JPEG or PNG files, or members of a zip."""

from __future__ import annotations

import csv
import io
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..frameworks.base import first_line, import_framework
from .data import DataContext, Scaling, Splits
from .device import available_cores
from .inputter import Array, Inputter, prefetched

_CACHE_LIMIT = 2 << 30
"""Decoded images of a split that take more bytes than this are decoded anew each epoch."""


def csv_splits(
    context: DataContext,
    num_classes: int,
    files: Mapping[str, str],
    image_size: Sequence[int] | None = None,
    channels: int = 3,
    archive: str | None = None,
    batch_size: int = 128,
    scale: float = 1 / 255,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    threads: int | None = None,
    cache: bool = True,
) -> Splits:
    """Images and labels of CSV files without a header, rows ``path,label``.

    Args:
        context: given by Ingot.
        num_classes: labels are integers from 0 below this.
        files: by split a CSV, or several with commas between; paths in a CSV are relative to it.
        image_size: height and width that images are scaled to; the size of the first by default.
        channels: 3 for RGB, 1 for grey.
        archive: a zip whose members the paths in the CSVs are; a CSV may be a member, too.
        batch_size: samples a batch.
        scale: factor of values 0..255; then ``mean`` is subtracted, and ``std`` divided by.
        mean: of each channel; 0 by default.
        std: of each channel; 1 by default.
        threads: threads that decode; the free cores by default.
        cache: keep decoded images in memory, up to 2 GiB a split.

    Raises:
        InputError: a row names a missing file, or a label out of range.
    """
    scaling = Scaling(scale, tuple(mean or (0.0,) * channels), tuple(std or (1.0,) * channels))
    source = None if archive is None else Archive(context.path(archive))
    found = {}
    for split, names in files.items():
        rows: list[Row] = []
        for name in names.split(","):
            rows += read_rows(context.root, name.strip(), num_classes, source)
        found[split] = ImageInputter(
            rows,
            source=source,
            image_size=None if image_size is None else (image_size[0], image_size[1]),
            channels=channels,
            scaling=scaling,
            threads=threads,
            cache=cache,
            **context.options(split, batch_size),
        )
    return found


class Archive:
    """The members of a zip, read from several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        try:
            with zipfile.ZipFile(path) as opened:
                self.names = frozenset(opened.namelist())
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        except Exception as error:
            raise InputError(f"{path}: not a zip that can be read: {_reason(error)}") from error

    def read(self, name: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            InputError: it is damaged, encrypted or packed in a way that is not known.
        """
        try:
            opened = getattr(self._local, "opened", None)
            if opened is None:
                opened = self._local.opened = zipfile.ZipFile(self.path)
            found: bytes = opened.read(name)
        except Exception as error:  # zipfile lets through what zlib, bz2 and lzma raise
            raise InputError(f"{self.path}: {name}: cannot be read: {_reason(error)}") from error
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _local=threading.local())


@dataclass(frozen=True)
class Row:
    """One row of a CSV: file, or member of the archive, label, and where it stands."""

    path: str
    label: int
    where: str


def read_rows(root: Path, name: str, classes: int, archive: Archive | None) -> list[Row]:
    """Read and check the rows of a CSV.

    Raises:
        InputError: the CSV is not there; a row has another form, a missing file, or a label out of
            range (the message has its number, from 1, and the path).
    """
    path = root / Path(name).expanduser()
    label = str(path)
    if archive is not None and not path.is_file() and name in archive.names:
        data = archive.read(name)
        label = f"{archive.path}/{name}"
        folder = name.rpartition("/")[0]
    else:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        folder = "" if archive is not None else str(path.parent)
    rows = []
    for number, entry in _entries(data, label):
        where = f"{label}: row {number}"
        if len(entry) != 2:
            raise InputError(f"{where}: found {len(entry)} columns; expected path,label")
        file, written = entry[0].strip(), entry[1].strip()
        if not written.isdecimal() or int(written) >= classes:
            raise InputError(
                f"{where}: {file}: found the label {written!r}; expected an integer"
                f" 0..{classes - 1}"
            )
        full = os.path.join(folder, file) if folder else file
        is_there = full in archive.names if archive is not None else os.path.isfile(full)
        if not is_there:
            place = f"{archive.path}: " if archive is not None else ""
            raise InputError(f"{where}: {place}{full}: no such file")
        rows.append(Row(full, int(written), where))
    if not rows:
        raise InputError(f"{label}: found no rows; expected path,label")
    return rows


def _entries(data: bytes, label: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number, from 1, and columns of each row of a CSV that is not empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{label}: row {row}: found the byte {data[error.start]:#04x}; expected UTF-8",
            hint="write the file anew as UTF-8",
        ) from error
    number = 0
    try:
        for number, entry in enumerate(csv.reader(io.StringIO(text)), start=1):
            if entry:
                yield number, entry
    except csv.Error as error:
        raise InputError(f"{label}: row {number + 1}: cannot be read: {error}") from error


def _reason(error: BaseException) -> str:
    """Return what went wrong, in one line; many of these errors have no text."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__


class ImageInputter(Inputter):
    """Decodes, in threads, the images of the rows of CSV files.

    Args:
        rows: files and labels.
        source: the archive that they lie in; None for files.
        image_size: height and width; that of the first image by default.
        channels: 3 for RGB, 1 for grey.
        scaling: of the values, after augmentation.
        threads: threads that decode; the free cores by default.
        cache: keep decoded images in memory, when they take at most 2 GiB.
        options: those of :class:`Inputter`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        source: Archive | None,
        image_size: tuple[int, int] | None,
        channels: int,
        scaling: Scaling,
        threads: int | None,
        cache: bool,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        import_framework("PIL", "train")
        self.rows = list(rows)
        self.source = source
        self.channels = channels
        self.scaling = scaling
        self.threads = threads or available_cores()
        self.labels = np.array([row.label for row in rows], np.int64)
        self.image_size = image_size or self._decode(self.rows[0], None).shape[:2]
        size = len(rows) * channels * self.image_size[0] * self.image_size[1]
        self._cached: Array | None = None
        self._known = np.zeros(len(rows), bool)
        if cache and size <= _CACHE_LIMIT:
            self._cached = np.empty((len(rows), channels, *self.image_size), np.uint8)
        self._pool: ThreadPoolExecutor | None = None

    @property
    def num_samples(self) -> int:
        return len(self.rows)

    def read(self, indices: Array, generator: np.random.Generator | None) -> Sequence[Array]:
        images = self._images(indices)
        if self.augmenter is not None:
            images = self.augmenter(images, generator)
        return [self.scaling(images), self.labels[indices]]

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        return prefetched(super().batches(epoch, start), depth=4)

    def _images(self, indices: Array) -> Array:
        missing = indices if self._cached is None else indices[~self._known[indices]]
        fresh = np.empty((len(missing), self.channels, *self.image_size), np.uint8)
        if len(missing):
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, "ingot-decode")
            chunks = np.array_split(np.arange(len(missing)), self.threads)
            list(self._pool.map(lambda chunk: self._fill(fresh, missing, chunk), chunks))
        if self._cached is None:
            return fresh
        self._cached[missing] = fresh
        self._known[missing] = True
        return self._cached[indices]

    def _fill(self, images: Array, indices: Array, chunk: Array) -> None:
        for place in chunk:
            image = self._decode(self.rows[indices[place]], self.image_size)
            images[place] = image.transpose(2, 0, 1)

    def _decode(self, row: Row, size: tuple[int, int] | None) -> Array:
        """Return an image, uint8 ``(height, width, channels)``."""
        from PIL import Image

        try:
            data = (
                Path(row.path).read_bytes() if self.source is None else self.source.read(row.path)
            )
            with Image.open(io.BytesIO(data)) as image:
                converted = image.convert("L" if self.channels == 1 else "RGB")
                if size is not None and converted.size != (size[1], size[0]):
                    converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                array = np.asarray(converted)
        except InputError as error:
            raise InputError(f"{row.where}: {error.message}") from error
        except OSError as error:
            raise InputError(
                f"{row.where}: {row.path}: cannot be decoded: {error.strerror or first_line(error)}"
            ) from error
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise InputError(
                f"{row.where}: {row.path}: cannot be decoded: {_reason(error)}"
            ) from error
        return array if array.ndim == 3 else array[..., None]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}
