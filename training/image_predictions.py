"""Predictions about images: classes, masks and boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, UsageError
from ..frameworks.base import import_framework
from .inputter import Array, Inputter
from .prediction import BatchPredictor, Prediction, listed_files, only_array

if TYPE_CHECKING:
    from .problem import Problem

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
"""Ends of the files of a folder that are taken for images."""

_SUM_TOLERANCE = 1e-3
"""Scores that are not negative and add up to 1 within this are probabilities already."""


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The class of a sample.

    Attributes:
        classes: the class, from 0.
        probabilities: of each class, ``(classes,)``; they add up to 1.
        names: of the classes; may be empty.
    """

    classes: int
    probabilities: Array
    names: tuple[str, ...] = ()

    def ranked(self, count: int) -> list[tuple[str, float]]:
        """Return name and probability of the likeliest classes, the likeliest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(class_name(int(i), self.names), float(self.probabilities[i])) for i in order]

    def to_dict(self) -> dict[str, Any]:
        return {
            self.sample_key: self.sample,
            "classes": self.classes,
            "name": class_name(self.classes, self.names),
            "probabilities": [float(value) for value in self.probabilities],
        }

    def line(self) -> str:
        found = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.ranked(3))
        return f"{self.sample}: {found}"


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """The class of each pixel of an image.

    Attributes:
        mask: ``(height, width)`` of the file, uint8 or uint16.
        names: of the classes; may be empty.
    """

    mask: Array = field(repr=False)
    names: tuple[str, ...] = ()

    def shares(self) -> list[tuple[int, float]]:
        """Return the classes that occur, and the share of the pixels of each, the largest first."""
        found, counts = np.unique(self.mask, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(found[i]), float(counts[i] / self.mask.size)) for i in order]

    def to_dict(self) -> dict[str, Any]:
        return {
            self.sample_key: self.sample,
            "classes": [
                {"class": index, "name": class_name(index, self.names), "share": share}
                for index, share in self.shares()
            ],
            "mask": self.mask.tolist(),
        }

    def line(self) -> str:
        shares = [(class_name(index, self.names), 100 * share) for index, share in self.shares()]
        return f"{self.sample}: {', '.join(f'{name} {share:.1f} %' for name, share in shares)}"


@dataclass(frozen=True)
class BoxPrediction(Prediction):
    """The objects in an image, the surest first.

    Attributes:
        boxes: left, top, right and bottom in pixels of the file, float32 ``(count, 4)``.
        classes: of each, from 1, int64 ``(count,)``; 0 is the background.
        scores: of each, 0..1, float32 ``(count,)``.
        names: of the classes from 1 on; may be empty.
    """

    boxes: Array
    classes: Array
    scores: Array
    names: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """Return what the class of a box is called."""
        return class_name(int(self.classes[index]), ("background", *self.names))

    def to_dict(self) -> dict[str, Any]:
        objects = [
            {
                "class": int(self.classes[index]),
                "name": self.name(index),
                "score": float(self.scores[index]),
                "box": [round(float(value), 2) for value in self.boxes[index]],
            }
            for index in range(len(self.boxes))
        ]
        return {self.sample_key: self.sample, "boxes": objects}

    def line(self) -> str:
        found = [
            f"{self.name(index)} {100 * self.scores[index]:.0f} %"
            f" [{' '.join(f'{value:.0f}' for value in self.boxes[index])}]"
            for index in range(len(self.boxes))
        ]
        return f"{self.sample}: {', '.join(found) or 'nothing'}"


def class_name(index: int, names: Sequence[str]) -> str:
    """Return what a class is called: its name, or its number."""
    return names[index] if index < len(names) and names[index] else str(index)


def probabilities_of(scores: Array) -> Array:
    """Return probabilities of scores along axis 1: themselves, if they are some, or the softmax.

    Args:
        scores: ``(batch, classes, ...)``; of a single class, logits of a sigmoid.

    Returns:
        ``(batch, classes, ...)``, float64; of a single class, of 0 and 1.
    """
    scores = scores.astype(np.float64)
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], 1)
    elif (scores >= 0).all() and (abs(scores.sum(1) - 1) < _SUM_TOLERANCE).all():
        return scores
    powers = np.exp(scores - scores.max(1, keepdims=True))
    found: Array = powers / powers.sum(1, keepdims=True)
    return found


class ImagePredictor(BatchPredictor):
    """Predictions about image files."""

    def samples(self, files: Sequence[str]) -> list[str]:
        return listed_files(files, IMAGE_SUFFIXES)


class ClassificationPredictor(ImagePredictor):
    """Class and probabilities; outputs are logits or probabilities ``(batch, classes)``."""

    display = "infer_display_image_classification"

    def decoded(
        self, outputs: Any, samples: Sequence[str], inputter: Inputter
    ) -> Iterable[Prediction]:
        scores = only_array(outputs, 2, "(batch, classes)")
        names = names_of(inputter, max(2, scores.shape[1]))
        for sample, values in zip(samples, probabilities_of(scores), strict=True):
            yield ClassPrediction(sample, int(values.argmax()), values, names)

    def arrays(self, predictions: Sequence[ClassPrediction]) -> dict[str, Array]:
        return {
            "classes": np.array([item.classes for item in predictions], np.int64),
            "probabilities": np.stack([item.probabilities for item in predictions]).astype("f4"),
        }


class SegmentationPredictor(ImagePredictor):
    """The class of each pixel; outputs are logits ``(batch, classes, height, width)``.

    Of a network of Keras they are ``(batch, height, width, classes)``. Masks are scaled to the size
    of the file, by the nearest pixel.
    """

    display = "infer_display_image_segmentation"

    def decoded(
        self, outputs: Any, samples: Sequence[str], inputter: Inputter
    ) -> Iterable[Prediction]:
        from PIL import Image

        logits = only_array(outputs, 4, "(batch, classes, height, width)")
        if self.problem.spec.model.framework == "keras":  # classes stand last, as its channels do
            logits = np.moveaxis(logits, -1, 1)
        names = names_of(inputter, max(2, logits.shape[1]))
        found = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0)
        kind = np.uint8 if logits.shape[1] <= 256 else np.uint16
        for sample, mask in zip(samples, found.astype(kind), strict=True):
            size = image_size(sample)
            if size != mask.shape:
                picture = Image.fromarray(mask)
                picture = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
                mask = np.asarray(picture)
            yield MaskPrediction(sample, mask, names)

    def arrays(self, predictions: Sequence[MaskPrediction]) -> dict[str, Array]:
        sizes = {item.mask.shape for item in predictions}
        if len(sizes) > 1:
            raise UsageError(
                f"masks have {len(sizes)} sizes; expected one for an array",
                hint="-o FILE.json writes them as JSON, --display DIR as PNG files",
            )
        return {"masks": np.stack([item.mask for item in predictions])}


class DetectionPredictor(ImagePredictor):
    """Boxes, classes and scores; outputs are those of the zoo's SSD, as its evaluation takes them.

    Args:
        problem: the parts of the spec.
        model: the network.
        score: boxes with a lower score are left out.
        overlap: of two boxes of a class with a larger overlap, the weaker one is dropped.
        most: how many boxes are kept of an image.
    """

    display = "infer_display_object_detection"

    def __init__(
        self,
        problem: Problem,
        model: Any,
        score: float = 0.5,
        overlap: float = 0.45,
        most: int = 100,
    ) -> None:
        super().__init__(problem, model)
        self.score, self.overlap, self.most = score, overlap, most

    def decoded(
        self, outputs: Any, samples: Sequence[str], inputter: Inputter
    ) -> Iterable[Prediction]:
        leaves = list(outputs.values()) if isinstance(outputs, dict) else outputs
        if not isinstance(leaves, list) or len(leaves) != 2 or leaves[0].ndim != 3:
            raise InputError(
                "the model returned something else than class logits (batch, anchors, classes) and"
                " box offsets (batch, anchors, 4)"
            )
        names = names_of(inputter, leaves[0].shape[2] - 1)
        for sample, (boxes, scores, classes) in zip(
            samples, self._boxes(leaves, inputter), strict=True
        ):
            height, width = image_size(sample)
            scale = np.array([width, height, width, height], np.float32)
            yield BoxPrediction(sample, boxes * scale, classes, scores, names)

    def _boxes(self, outputs: Sequence[Array], inputter: Any) -> Iterator[list[Array]]:
        """Yield boxes (as fractions), scores and classes of each image."""
        torch = import_framework("torch", "torch")
        from .torch_ssd import DetectionEvaluation

        evaluation = DetectionEvaluation(
            image_size=inputter.image_size,
            score=self.score,
            overlap=self.overlap,
            most=self.most,
        )
        for found in evaluation.decoded(*map(torch.from_numpy, outputs)):
            yield [value.numpy() for value in found]

    def arrays(self, predictions: Sequence[BoxPrediction]) -> dict[str, Array]:
        counts = [len(item.boxes) for item in predictions]
        return {
            "image": np.repeat(np.arange(len(predictions)), counts),
            "boxes": np.concatenate([item.boxes for item in predictions]),
            "classes": np.concatenate([item.classes for item in predictions]),
            "scores": np.concatenate([item.scores for item in predictions]),
        }


def names_of(inputter: Inputter, count: int) -> tuple[str, ...]:
    """Return the names of the classes that an inputter knows.

    Raises:
        InputError: there are more or fewer than the network has classes.
    """
    names = tuple(getattr(inputter, "class_names", ()))
    if names and len(names) != count:
        raise InputError(f"class_names: found {len(names)} names; the network has {count} classes")
    return names


def image_size(path: str) -> tuple[int, int]:
    """Return height and width of an image file."""
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width
