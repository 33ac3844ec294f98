"""Images that a CSV lists with their masks: PNG files of class numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .augment import require_joint
from .csv_rows import Archive, Row, read_rows
from .data import DataContext, Splits
from .images import ImageInputter, image_array, scaling_of
from .inputter import Array

_IGNORED = 255


def segmentation_splits(
    context: DataContext,
    num_classes: int,
    files: Mapping[str, str],
    image_size: Sequence[int] | None = None,
    channels: int = 3,
    archive: str | None = None,
    batch_size: int = 16,
    scale: float = 1 / 255,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    ignore_index: int = _IGNORED,
    class_names: Sequence[str] = (),
    threads: int | None = None,
    cache: bool = True,
) -> Splits:
    """Images and masks of CSV files without a header, rows ``image,mask``.

    A mask is a PNG (grey, or with a palette) of the image's size; a value is the class of a pixel.

    Args:
        context: given by Ingot.
        num_classes: values of masks are integers from 0 below this, or ``ignore_index``.
        files: by split a CSV, or several with commas between; paths in a CSV are relative to it.
        image_size: height and width that images (bilinear) and masks (nearest pixel) are scaled
            to; the size of the first by default.
        channels: 3 for RGB, 1 for grey.
        archive: a zip whose members the paths in the CSVs are; a CSV may be a member, too.
        batch_size: samples a batch.
        scale: factor of values 0..255; then ``mean`` is subtracted, and ``std`` divided by.
        mean: of each channel; 0 by default.
        std: of each channel; 1 by default.
        ignore_index: the value of pixels that do not count.
        class_names: what the classes are called, for people.
        threads: threads that decode; the free cores by default.
        cache: keep decoded images and masks in memory, up to 2 GiB a split.

    Raises:
        InputError: a row names a missing file; while batches are read, a mask has another size than
            its image, or a value out of range.
        SpecError: the augmenter changes images alone.
    """
    require_joint(context.augmenter, context.label, "masks")
    source = None if archive is None else Archive(context.path(archive))
    return {
        split: MaskedImages(
            read_rows(context.root, names, ("image", "mask"), source, files=2),
            num_classes=num_classes,
            ignore_index=ignore_index,
            source=source,
            image_size=image_size,
            channels=channels,
            scaling=scaling_of(channels, scale, mean, std),
            class_names=class_names,
            threads=threads,
            cache=cache,
            **context.options(split, batch_size),
        )
        for split, names in files.items()
    }


class MaskedImages(ImageInputter):
    """Images with a class for each pixel: batches of images, and int64 ``(batch, height, width)``.

    Args:
        rows: files of images and masks.
        num_classes: how many there are.
        ignore_index: the value of pixels that do not count.
        options: those of :class:`ImageInputter`.
    """

    def __init__(
        self, rows: Sequence[Row], *, num_classes: int, ignore_index: int = _IGNORED, **options: Any
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        super().__init__(rows, **options)

    def shapes(self) -> list[tuple[int, ...]]:
        return [*super().shapes(), self.image_size]

    def load(self, row: Row) -> Sequence[Array]:
        image, size = self.opened(
            row, 0, lambda found: (image_array(found, self.channels, self.image_size), found.size)
        )
        return [image, self.opened(row, 1, lambda found: self._mask(found, size, row))]

    def read(self, indices: Array, generator: np.random.Generator | None) -> Sequence[Any]:
        images, masks = self.decoded(indices)
        augmenter = require_joint(self.augmenter, "augmenter", "masks")
        if augmenter is not None:
            images, masks = augmenter.with_masks(images, masks, generator)
        return [self.scaling(images), masks.astype(np.int64)]

    def _mask(self, found: Any, size: tuple[int, int], row: Row) -> Array:
        """Return a mask, uint8, scaled as its image is."""
        from PIL import Image

        if len(found.getbands()) != 1:
            raise InputError(
                f"{row.shown(1)}: found a mask of mode {found.mode}; expected one value a pixel (a"
                " grey PNG, or one with a palette)"
            )
        if found.size != size:
            raise InputError(
                f"{row.shown(1)}: found a mask of {found.width}x{found.height} pixels; its image"
                f" {row.shown()} has {size[0]}x{size[1]}"
            )
        values = np.asarray(found)
        wrong = (values >= self.num_classes) & (values != self.ignore_index) | (values < 0)
        if wrong.any():
            top, left = (int(place[0]) for place in np.nonzero(wrong))
            raise InputError(
                f"{row.shown(1)}: pixel ({left}, {top}): found the class {values[top, left]};"
                f" expected 0..{self.num_classes - 1}, or {self.ignore_index} for none"
            )
        if values.shape == self.image_size:
            return values.astype(np.uint8)
        scaled = Image.fromarray(values.astype(np.uint8)).resize(
            (self.image_size[1], self.image_size[0]), Image.Resampling.NEAREST
        )
        return np.asarray(scaled)
