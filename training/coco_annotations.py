"""COCO's annotation files of boxes, read and checked.

The format: https://cocodataset.org/#format-data ("object detection").
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..frameworks.base import first_line
from ..runtime.sources import shown_path
from ..specs.hints import did_you_mean
from .csv_rows import Archive, Row
from .data import DataContext
from .inputter import Array

_SECTIONS: dict[str, tuple[str, ...]] = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
"""Lists of an annotation file, and the keys that their entries need."""

_ID: tuple[str, tuple[type, ...]] = ("an integer or a text", (int, str))
_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "file_name": ("a text", (str,)),
    "name": ("a text", (str,)),
    "width": ("an integer", (int,)),
    "height": ("an integer", (int,)),
}
"""What the values of these keys are, in words and as types."""

_LONGEST = 60
"""Characters of a value in a message."""

_MOST_PIXELS = 10**9
"""Sizes and places are below this; no finite number is above."""


class Annotations:
    """A checked annotation file.

    Args:
        path: the JSON file.
        class_names: the categories in the order of their labels; of the file, by id, when empty.

    Raises:
        InputError: it is no annotation file, or names what does not exist.
    """

    def __init__(self, path: Path, class_names: Sequence[str] = ()) -> None:
        self.path, self.label = path, shown_path(path)
        document = _read(path, self.label)
        self.images = self._by_id(document["images"], "images")
        if not self.images:
            raise InputError(f"{self.label}: found no images; expected at least one")
        categories = self._by_id(document["categories"], "categories")
        ordered = [categories[key]["name"] for key in sorted(categories)]
        self.class_names = tuple(class_names) or tuple(ordered)
        self._labels: dict[Any, int] = {}
        for key, entry in categories.items():
            name = entry["name"]
            if name not in self.class_names:
                raise InputError(
                    f"{self.label}: found the category {name!r}; class_names has"
                    f" {', '.join(self.class_names)}",
                    hint=did_you_mean(name, self.class_names),
                )
            self._labels[key] = self.class_names.index(name) + 1
        self._boxes: dict[Any, list[tuple[list[float], int]]] = {key: [] for key in self.images}
        for index, entry in enumerate(document["annotations"]):
            self._add(entry, f"{self.label}: annotations[{index}]")

    def rows(self, folder: str | None, source: Archive | None, context: DataContext) -> list[Row]:
        """Return the files of the images: path, width and height of each.

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
            where = f"{self.label}: image {key}"
            path = os.path.join(base, image["file_name"]) if base else image["file_name"]
            if not (path in source.names if source is not None else os.path.isfile(path)):
                place = shown_path(path) if source is None else f"{source.label}: {path}"
                raise InputError(f"{where}: {place}: no such file")
            size = str(image["width"]), str(image["height"])
            found.append(Row((path, *size), where, image["file_name"]))
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
                    f"{self.label}: {section}[{index}]: found the id {entry['id']!r} a second time"
                )
            found[entry["id"]] = entry
        return found

    def _add(self, entry: Any, where: str) -> None:
        image, category, box = entry["image_id"], entry["category_id"], entry["bbox"]
        if image not in self.images:
            raise InputError(f"{where}: image {image!r} does not exist")
        if category not in self._labels:
            raise InputError(
                f"{where}: category {category!r} does not exist; the file has"
                f" {', '.join(map(repr, sorted(self._labels)))}"
            )
        if not _is_box(box):
            raise InputError(
                f"{where}: bbox: found {box}; expected [left, top, width, height] in pixels"
            )
        left, top, width, height = box
        size = self.images[image]
        is_inside = -width < left < size["width"] and -height < top < size["height"]
        if width and height and not is_inside:
            raise InputError(
                f"{where}: bbox: found {box}, outside of its image {image!r} of"
                f" {size['width']}x{size['height']} pixels"
            )
        if not entry.get("iscrowd"):
            self._boxes[image].append((box, self._labels[category]))


def _is_box(value: Any) -> bool:
    """Whether a value is a list of four finite numbers, the last two not negative."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(number) in (int, float) and abs(number) < _MOST_PIXELS for number in value)
        and min(value[2:]) >= 0
    )


def _read(path: Path, label: str) -> dict[str, Any]:
    """Return an annotation file whose lists have entries with the keys that they need.

    Args:
        path: the file.
        label: what messages call it.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{label}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{label}: cannot be read as JSON: {first_line(error)}") from error
    for section, keys in _SECTIONS.items():
        entries = document.get(section) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{label}: found no list {section!r}; expected a COCO annotation file")
        for index, entry in enumerate(entries):
            where = f"{label}: {section}[{index}]"
            if not isinstance(entry, dict):
                raise InputError(f"{where}: found {_short(entry)}; expected an object")
            missing = [key for key in keys if key not in entry]
            if missing:
                raise InputError(f"{where}: the key {missing[0]!r} is missing")
            for key in keys:
                _check_type(entry[key], key, where)
    for section, key, owner in (
        ("images", "id", "images"),
        ("categories", "id", "categories"),
        ("annotations", "image_id", "images"),
        ("annotations", "category_id", "categories"),
    ):
        if document[owner]:
            kind = type(document[owner][0]["id"])
            _check_kind(document[section], key, kind, f"{label}: {section}")
    for index, image in enumerate(document["images"]):
        sizes = (image["width"], image["height"])
        if min(sizes) < 1 or max(sizes) >= _MOST_PIXELS:
            raise InputError(f"{label}: images[{index}]: found the size {sizes}; expected pixels")
    names: set[str] = set()
    for index, category in enumerate(document["categories"]):
        if category["name"] in names:
            raise InputError(
                f"{label}: categories[{index}]: found the name {category['name']!r} a second time"
            )
        names.add(category["name"])
    found: dict[str, Any] = document
    return found


def _check_type(value: Any, key: str, where: str) -> None:
    """Check the type of what an entry has; boxes are checked with their images."""
    expected, kinds = _TYPES.get(key, ("", ()))
    if kinds and type(value) not in kinds:  # true is an int to isinstance
        raise InputError(f"{where}: {key}: found {_short(value)}; expected {expected}")


def _check_kind(entries: Sequence[Any], key: str, kind: type, where: str) -> None:
    """Check that ids are all of one type, that of the first one they are compared with."""
    for index, entry in enumerate(entries):
        if type(entry[key]) is not kind:
            expected = "an integer" if kind is int else "a text"
            raise InputError(
                f"{where}[{index}]: {key}: found {_short(entry[key])}; expected {expected}, as the"
                " other ids are"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
