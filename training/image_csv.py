"""Images that a CSV lists with their labels: JPEG or PNG files, or members of a zip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .csv_rows import Archive, Row, read_rows
from .data import DataContext, Splits
from .images import ImageInputter, scaling_of
from .inputter import Array


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
    class_names: Sequence[str] = (),
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
        class_names: what the classes are called, for people.
        threads: threads that decode; the free cores by default.
        cache: keep decoded images in memory, up to 2 GiB a split.

    Raises:
        InputError: a row names a missing file, or a label out of range.
    """
    scaling = scaling_of(channels, scale, mean, std)
    source = None if archive is None else Archive(context.path(archive))
    found = {}
    for split, names in files.items():
        rows = read_rows(context.root, names, ("path", "label"), source)
        found[split] = LabelledImages(
            rows,
            [_label(row, num_classes) for row in rows],
            source=source,
            image_size=image_size,
            channels=channels,
            scaling=scaling,
            class_names=class_names,
            threads=threads,
            cache=cache,
            **context.options(split, batch_size),
        )
    return found


def _label(row: Row, classes: int) -> int:
    written = row.columns[1]
    if not written.isdecimal() or int(written) >= classes:
        raise InputError(
            f"{row.where}: {row.written}: found the label {written!r}; expected an integer"
            f" 0..{classes - 1}"
        )
    return int(written)


class LabelledImages(ImageInputter):
    """Images with an integer each.

    Args:
        rows: the files.
        labels: as many integers.
        options: those of :class:`ImageInputter`.
    """

    def __init__(self, rows: Sequence[Row], labels: Sequence[int], **options: Any) -> None:
        super().__init__(rows, **options)
        self.labels = np.array(labels, np.int64)

    def read(self, indices: Array, generator: np.random.Generator | None) -> Sequence[Any]:
        return [*super().read(indices, generator), self.labels[indices]]
