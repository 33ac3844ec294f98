"""Images with boxes, as COCO's annotation files list them.

The format: https://cocodataset.org/#format-data ("object detection").
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..frameworks.base import first_line
from ..specs.hints import did_you_mean
from .augment import require_joint
from .csv_rows import Archive, Row
from .data import DataContext, Splits
from .images import ImageInputter, scaling_of
from .inputter import Array

_SECTIONS: dict[str, tuple[str, ...]] = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
"""Lists of an annotation file, and the keys that their entries need."""


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
                f"{path}: found the categories {', '.join(annotations.class_names)}; another split"
                f" has {', '.join(names)}",
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


class Annotations:
    """A checked annotation file.

    Args:
        path: the JSON file.
        class_names: the categories in the order of their labels; of the file, by id, when empty.

    Raises:
        InputError: it is no annotation file, or names what does not exist.
    """

    def __init__(self, path: Path, class_names: Sequence[str] = ()) -> None:
        self.path = path
        document = _read(path)
        self.images = self._by_id(document["images"], "images")
        if not self.images:
            raise InputError(f"{path}: found no images; expected at least one")
        categories = self._by_id(document["categories"], "categories")
        ordered = [str(categories[key]["name"]) for key in sorted(categories)]
        self.class_names = tuple(class_names) or tuple(ordered)
        self._labels: dict[Any, int] = {}
        for key, entry in categories.items():
            name = str(entry["name"])
            if name not in self.class_names:
                raise InputError(
                    f"{path}: found the category {name!r}; class_names has"
                    f" {', '.join(self.class_names)}",
                    hint=did_you_mean(name, self.class_names),
                )
            self._labels[key] = self.class_names.index(name) + 1
        self._boxes: dict[Any, list[tuple[list[float], int]]] = {key: [] for key in self.images}
        for index, entry in enumerate(document["annotations"]):
            self._add(entry, f"{path}: annotations[{index}]")

    def rows(self, folder: str | None, source: Archive | None, context: DataContext) -> list[Row]:
        """Return the files of the images.

        Args:
            folder: where they lie; None is the folder of the annotations.
            source: the archive that they lie in; None for files.
            context: says where the folder is meant from.

        Raises:
            InputError: one is not there.
        """
        base = str(self.path.parent if folder is None else context.path(folder))
        if source is not None:
            base = (folder or "").strip("/")
        found = []
        for key, image in self.images.items():
            where = f"{self.path}: image {key}"
            path = os.path.join(base, image["file_name"]) if base else image["file_name"]
            if not (path in source.names if source is not None else os.path.isfile(path)):
                place = f"{source.path}: " if source is not None else ""
                raise InputError(f"{where}: {place}{path}: no such file")
            found.append(Row((path,), where, image["file_name"]))
        return found

    def targets(self) -> list[dict[str, Array]]:
        """Return the boxes of each image, as fractions of its size, and their labels."""
        found = []
        for key, image in self.images.items():
            size = np.array([image["width"], image["height"]] * 2, np.float32)
            boxes = np.array([box for box, _ in self._boxes[key]], np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            boxes = np.clip(boxes / size, 0, 1)
            labels = np.array([label for _, label in self._boxes[key]], np.int64)
            has_area = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
            found.append({"boxes": boxes[has_area], "labels": labels[has_area]})
        return found

    def _by_id(self, entries: Any, section: str) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for index, entry in enumerate(entries):
            if entry["id"] in found:
                raise InputError(
                    f"{self.path}: {section}[{index}]: found the id {entry['id']} a second time"
                )
            found[entry["id"]] = entry
        return found

    def _add(self, entry: Any, where: str) -> None:
        image, category, box = entry["image_id"], entry["category_id"], entry["bbox"]
        if image not in self.images:
            raise InputError(f"{where}: image {image} does not exist")
        if category not in self._labels:
            raise InputError(
                f"{where}: category {category} does not exist; the file has"
                f" {', '.join(map(str, sorted(self._labels)))}"
            )
        numbers = isinstance(box, list) and all(isinstance(v, int | float) for v in box)
        if not numbers or len(box) != 4 or min(box[2:]) < 0:
            raise InputError(
                f"{where}: bbox: found {box}; expected [left, top, width, height] in pixels"
            )
        if not entry.get("iscrowd"):
            self._boxes[image].append((box, self._labels[category]))


def _read(path: Path) -> dict[str, Any]:
    """Return an annotation file whose lists have entries with the keys that they need."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {first_line(error)}") from error
    for section, keys in _SECTIONS.items():
        entries = document.get(section) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{path}: found no list {section!r}; expected a COCO annotation file")
        for index, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise InputError(f"{path}: {section}[{index}]: the key {missing[0]!r} is missing")
    for index, image in enumerate(document["images"]):
        sizes = (image["width"], image["height"])
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise InputError(f"{path}: images[{index}]: found the size {sizes}; expected pixels")
    found: dict[str, Any] = document
    return found


class BoxedImages(ImageInputter):
    """Images with boxes: batches of images, and a list with a dict for each image.

    Args:
        rows: the files.
        targets: ``boxes`` and ``labels`` of each image.
        options: those of :class:`ImageInputter`.
    """

    def __init__(
        self, rows: Sequence[Row], targets: Sequence[Mapping[str, Array]], **options: Any
    ) -> None:
        super().__init__(rows, **options)
        self.targets = list(targets)

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
