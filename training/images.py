"""Images of files, decoded in threads: what the inputters of every image problem share."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, UsageError
from ..frameworks.base import first_line, import_framework
from .csv_rows import Archive, Row, reason
from .data import DataContext, Scaling
from .device import available_cores
from .inputter import Array, Inputter, prefetched

_CACHE_LIMIT = 2 << 30
"""Decoded samples of a split that take more bytes than this are decoded anew each epoch."""


def scaling_of(
    channels: int, scale: float, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Scaling:
    """Return the scaling of images; 0 and 1 are the defaults of mean and standard deviation.

    Raises:
        UsageError: there are more or fewer values than channels.
    """
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise UsageError(
                f"{name}: found {len(values)} values; expected {channels}, one a channel"
            )
    return Scaling(scale, tuple(mean or (0.0,) * channels), tuple(std or (1.0,) * channels))


class ImageInputter(Inputter):
    """Decodes the images of some files; by itself it yields them without targets.

    Args:
        rows: the files, and where they are named.
        source: the archive that they lie in; None for files.
        image_size: height and width that they are scaled to; that of the first by default.
        channels: 3 for RGB, 1 for grey.
        scaling: of the values, after augmentation.
        class_names: what the classes are called, for people; may be empty.
        threads: threads that decode; the free cores by default.
        cache: keep decoded samples in memory, when they take at most 2 GiB.
        options: those of :class:`Inputter`.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        source: Archive | None = None,
        image_size: Sequence[int] | None = None,
        channels: int = 3,
        scaling: Scaling | None = None,
        class_names: Sequence[str] = (),
        threads: int | None = None,
        cache: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        import_framework("PIL", "train")
        self.rows = list(rows)
        self.source = source
        self.channels = channels
        self.scaling = scaling or scaling_of(channels, 1 / 255, None, None)
        self.class_names = tuple(class_names)
        self.threads = threads or available_cores()
        self.image_size = tuple(image_size or self._image(self.rows[0], None).shape[1:])
        shapes = self.shapes()
        self._known = np.zeros(len(self.rows), bool)
        self._cached: list[Array] | None = None
        if cache and len(self.rows) * sum(map(np.prod, shapes)) <= _CACHE_LIMIT:
            self._cached = [np.empty((len(self.rows), *shape), np.uint8) for shape in shapes]
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def of_files(cls, files: Sequence[str], batch_size: int = 32, **options: Any) -> ImageInputter:
        """Return the inputter of some files without targets, each of which is read once.

        An inputter of your own returns one from ``for_files(files)``, for ``infer --files``.

        Args:
            files: paths of JPEG or PNG files.
            batch_size: samples a batch.
            options: the other arguments of the class.
        """
        rows = [Row((str(file),), "") for file in files]
        return cls(rows, batch_size=batch_size, cache=False, **options)

    @property
    def num_samples(self) -> int:
        return len(self.rows)

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of each array that :meth:`load` returns."""
        return [(self.channels, *self.image_size)]

    def load(self, row: Row) -> Sequence[Array]:
        """Return the arrays of one sample, uint8: the image, and what else is read from files."""
        return [self._image(row, self.image_size)]

    def read(self, indices: Array, generator: np.random.Generator | None) -> Sequence[Any]:
        return [self.scaling(self.augmented(self.decoded(indices)[0], generator))]

    def augmented(self, images: Array, generator: np.random.Generator | None) -> Array:
        """Return images as the augmenter changes them, if there is one."""
        return images if self.augmenter is None else self.augmenter(images, generator)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        return prefetched(super().batches(epoch, start), depth=4)

    def decoded(self, indices: Array) -> list[Array]:
        """Return the arrays of some samples, stacked."""
        missing = indices if self._cached is None else indices[~self._known[indices]]
        fresh = [np.empty((len(missing), *shape), np.uint8) for shape in self.shapes()]
        if len(missing):
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, "ingot-decode")
            chunks = np.array_split(np.arange(len(missing)), self.threads)
            list(self._pool.map(lambda chunk: self._fill(fresh, missing, chunk), chunks))
        if self._cached is None:
            return fresh
        for cached, arrays in zip(self._cached, fresh, strict=True):
            cached[missing] = arrays
        self._known[missing] = True
        return [cached[indices] for cached in self._cached]

    def _fill(self, fresh: list[Array], indices: Array, chunk: Array) -> None:
        for place in chunk:
            for arrays, array in zip(fresh, self.load(self.rows[indices[place]]), strict=True):
                arrays[place] = array

    def _image(self, row: Row, size: Sequence[int] | None) -> Array:
        """Return an image, uint8 ``(channels, height, width)``."""
        return self.opened(row, 0, lambda image: image_array(image, self.channels, size))

    def opened(self, row: Row, column: int, use: Any) -> Any:
        """Open the file of a column, and return what ``use`` makes of the image of Pillow.

        Raises:
            InputError: it cannot be read or decoded; the message has row and path.
        """
        path = row.columns[column]
        try:
            data = Path(path).read_bytes() if self.source is None else self.source.read(path)
            return use(_open(data))
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            if isinstance(error, InputError):
                said = error.message
            elif isinstance(error, FileNotFoundError):
                said = f"{row.shown(column)}: no such file"
            else:
                said = f"{row.shown(column)}: cannot be decoded: {_reason(error)}"
            raise InputError(f"{row.where}: {said}" if row.where else said) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its own message has an address in memory
        return "found no image; expected JPEG, PNG or another format that Pillow reads"
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    return reason(error)


def _open(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data))


def image_array(image: Any, channels: int, size: Sequence[int] | None) -> Array:
    """Return an image of Pillow as uint8 ``(channels, height, width)``.

    Args:
        image: of any mode.
        channels: 3 for RGB, 1 for grey.
        size: height and width that it is scaled to (bilinear); None leaves it as it is.
    """
    from PIL import Image

    converted = image.convert("L" if channels == 1 else "RGB")
    if size is not None and converted.size != (size[1], size[0]):
        converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(converted)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def image_files(
    context: DataContext,
    files: Sequence[str],
    image_size: Sequence[int] | None = None,
    channels: int | None = None,
    scale: float = 1 / 255,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
    threads: int | None = None,
    batch_size: int = 32,
) -> ImageInputter:
    """Return images without targets, prepared as an inputter of images prepares its own.

    Args:
        context: given by Ingot.
        files: JPEG or PNG files.
        image_size: height and width; those of the model's input by default.
        channels: likewise.
        scale: factor of values 0..255.
        mean: of each channel; 0 by default.
        std: of each channel; 1 by default.
        class_names: what the classes are called.
        threads: threads that decode.
        batch_size: samples a batch.
    """
    found = context.image_shape()
    if channels is None:
        channels = len(mean) if mean is not None else 3 if found is None else found[0]
    return ImageInputter.of_files(
        files,
        image_size=image_size or (None if found is None else found[1:]),
        channels=channels,
        scaling=scaling_of(channels, scale, mean, std),
        class_names=class_names,
        threads=threads,
        **context.options("infer", batch_size),
    )
