"""COCO's metrics of boxes (pycocotools), of a whole set and of each image."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..frameworks.base import import_framework

Array = np.ndarray[Any, Any]

_METRICS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")


def coco_metrics(found: list[Any], wanted: list[Any], height: int, width: int) -> dict[str, float]:
    """Return the metrics of the whole set, as :func:`coco_evaluation` does."""
    return coco_evaluation(found, wanted, height, width)[0]


def coco_evaluation(
    found: Sequence[Any], wanted: Sequence[Any], height: int, width: int
) -> tuple[dict[str, float], Array]:
    """Return COCO's metrics of boxes, and the average precision in each image.

    Args:
        found: boxes, scores and labels of each image; boxes are fractions of the image's size.
        wanted: boxes and labels of each image.
        height: of the images in pixels.
        width: likewise.

    Returns:
        ``map``, ``map50``, ``map75``, and ``map_small``, ``map_medium``, ``map_large`` where such
        boxes exist; and an array ``(images,)`` of values 0..1: the average precision in the image
        alone, at overlaps of 0.5 to 0.95, averaged over these and the classes of its true boxes.
        An image without true boxes has 1 less the highest score in it: 1 where nothing is found.
    """
    pairs = zip(found, wanted, strict=True)
    image_ap = np.array([0.0 if len(true[1]) else _of_empty(it[1]) for it, true in pairs])
    scale = np.array([width, height, width, height], np.float64)
    annotations = [
        entry
        for image, (boxes, labels) in enumerate(wanted)
        for entry in _entries(image, boxes, labels, scale)
    ]
    results = [
        entry
        for image, (boxes, scores, labels) in enumerate(found)
        for entry in _entries(image, boxes, labels, scale, scores)
    ]
    if not annotations or not results:
        return {"map": 0.0, "map50": 0.0, "map75": 0.0}, image_ap
    evaluator = _evaluated(annotations, results, len(wanted))
    values = evaluator.stats[: len(_METRICS)]
    metrics = {
        name: float(value) for name, value in zip(_METRICS, values, strict=True) if value >= 0
    }
    for image, precisions in _precisions(evaluator).items():
        image_ap[image] = np.mean(precisions)
    return metrics, image_ap


def _of_empty(scores: Any) -> float:
    """Return the value of an image that has no true boxes."""
    return 1.0 - float(scores.max()) if len(scores) else 1.0


def _entries(
    image: int, boxes: Any, labels: Any, scale: Array, scores: Any = None
) -> list[dict[str, Any]]:
    """Return the boxes of an image as COCO writes them, in pixels."""
    corners = boxes.detach().cpu().numpy().astype(np.float64) * scale
    sizes = corners[:, 2:] - corners[:, :2]
    return [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": [*corners[index, :2].tolist(), *sizes[index].tolist()],
            "area": float(sizes[index].prod()),
            "iscrowd": 0,
            **({} if scores is None else {"score": float(scores[index])}),
        }
        for index, label in enumerate(labels.tolist())
    ]


def _evaluated(
    annotations: list[dict[str, Any]], results: list[dict[str, Any]], images: int
) -> Any:
    """Return pycocotools' evaluator after its work."""
    coco_module = import_framework("pycocotools.coco", "train")
    evaluation_module = import_framework("pycocotools.cocoeval", "train")
    classes = sorted({entry["category_id"] for entry in (*annotations, *results)})
    coco = coco_module.COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label} for label in classes],
        "annotations": [{**entry, "id": index + 1} for index, entry in enumerate(annotations)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluator = evaluation_module.COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _precisions(evaluator: Any) -> dict[int, list[float]]:
    """Return, by image, the average precision of each class that has true boxes in it.

    The matches are pycocotools' own; precision is interpolated at its recalls, as it does for the
    whole set. So the mean over one image alone is the ``map`` of that image.
    """
    every_size = tuple(evaluator.params.areaRng[0])
    recalls = np.asarray(evaluator.params.recThrs)
    found: dict[int, list[float]] = {}
    for entry in evaluator.evalImgs:
        if entry is None or tuple(entry["aRng"]) != every_size or not len(entry["gtIds"]):
            continue
        order = np.argsort(-np.asarray(entry["dtScores"]), kind="mergesort")
        hits = np.asarray(entry["dtMatches"])[:, order] > 0
        values = [_average_precision(row, len(entry["gtIds"]), recalls) for row in hits]
        found.setdefault(int(entry["image_id"]), []).append(float(np.mean(values)))
    return found


def _average_precision(hits: Array, boxes: int, recalls: Array) -> float:
    """Return the mean of the interpolated precision at some recalls, of predictions by score."""
    true = np.cumsum(hits)
    precision = true / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(true / boxes, recalls, side="left")
    return float(np.sum(envelope[place[place < len(hits)]]) / len(recalls))
