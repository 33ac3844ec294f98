"""Images with boxes, as COCO's annotation files list them.

The format: https://cocodataset.org/#format-data ("object detection").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .augment import require_joint
from .coco_annotations import Annotations
from .csv_rows import Archive, Row
from .data import DataContext, Splits
from .images import ImageInputter, image_array, scaling_of
from .inputter import Array


def coco_splits(
    context: DataContext,
    files: Mapping[str, str],
    images: Mapping[str, str] | str | None = None,
    image_size: Sequence[int] | None = None,
    channels: int = 3,
    archive: str | None = None,
    batch_size: int = 16,
    scale: float = 1 / 255,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
    threads: int | None = None,
    cache: bool = True,
) -> Splits:
    """Images and boxes of COCO annotation files.

    The target of an image is a dict: ``boxes`` (left, top, right, bottom as fractions of its size)
    and ``labels``, 1 for the first category. Crowds and boxes without an area are left out; images
    without boxes stay.

    Args:
        context: given by Ingot.
        files: by split a file of annotations (JSON).
        images: the folder of the images, or one by split; that of the annotations by default.
        image_size: height and width that images are scaled to; those of the model's input by
            default.
        channels: 3 for RGB, 1 for grey.
        archive: a zip whose members the images are.
        batch_size: samples a batch.
        scale: factor of values 0..255; then ``mean`` is subtracted, and ``std`` divided by.
        mean: of each channel; 0 by default.
        std: of each channel; 1 by default.
        class_names: names of the categories, in the order of their labels; by default those of the
            file, in the order of their ids.
        threads: threads that decode; the free cores by default.
        cache: keep decoded images in memory, up to 2 GiB a split.

    Raises:
        InputError: a file is no such file; it names a category or an image that does not exist; the
            splits have different categories.
        SpecError: the augmenter changes images alone.
    """
    require_joint(context.augmenter, context.label, "boxes")
    source = None if archive is None else Archive(context.path(archive))
    shape = context.image_shape()
    names: tuple[str, ...] = ()
    splits = {}
    for split, file in files.items():
        path = context.path(file)
        annotations = Annotations(path, class_names)
        if names and annotations.class_names != names:
            raise InputError(
                f"{annotations.label}: found the categories {', '.join(annotations.class_names)};"
                f" another split has {', '.join(names)}",
                hint="class_names says which categories there are, and their order",
            )
        names = annotations.class_names
        folder = images.get(split) if isinstance(images, Mapping) else images
        splits[split] = BoxedImages(
            annotations.rows(folder, source, context),
            annotations.targets(),
            source=source,
            image_size=image_size or (None if shape is None else shape[1:]),
            channels=channels,
            scaling=scaling_of(channels, scale, mean, std),
            class_names=names,
            threads=threads,
            cache=cache,
            **context.options(split, batch_size),
        )
    return splits


class BoxedImages(ImageInputter):
    """Images with boxes: batches of images, and a list with a dict for each image.

    Args:
        rows: the files, and perhaps width and height that they have in pixels.
        targets: ``boxes`` and ``labels`` of each image.
        options: those of :class:`ImageInputter`.
    """

    def __init__(
        self, rows: Sequence[Row], targets: Sequence[Mapping[str, Array]], **options: Any
    ) -> None:
        super().__init__(rows, **options)
        self.targets = list(targets)

    def load(self, row: Row) -> Sequence[Array]:
        return [self.opened(row, 0, lambda found: self._checked(found, row))]

    def _checked(self, found: Any, row: Row) -> Array:
        """Return an image as an array, if it has the size that the boxes are meant for."""
        if row.columns[1:] and row.columns[1:] != (str(found.width), str(found.height)):
            raise InputError(
                f"{row.shown()}: found an image of {found.width}x{found.height} pixels; expected"
                f" {row.columns[1]}x{row.columns[2]}, as its annotations say"
            )
        return image_array(found, self.channels, self.image_size)

    def read(self, indices: Array, generator: np.random.Generator | None) -> Sequence[Any]:
        (images,) = self.decoded(indices)
        chosen = [self.targets[index] for index in indices]
        boxes = [entry["boxes"] for entry in chosen]
        augmenter = require_joint(self.augmenter, "augmenter", "boxes")
        if augmenter is not None:
            images, boxes = augmenter.with_boxes(images, boxes, generator)
        targets = [
            {"boxes": changed, "labels": entry["labels"]}
            for changed, entry in zip(boxes, chosen, strict=True)
        ]
        return [self.scaling(images), targets]
