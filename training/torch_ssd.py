"""Object detection with the zoo's SSD: its loss, and the COCO metrics of what it finds.

Targets of a batch are a list with a dict for each image: ``boxes``, float ``(count, 4)`` with left,
top, right and bottom as fractions of the image's size, and ``labels``, integers from 1 (0 is the
background).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError
from .coco import coco_evaluation
from .device import Device
from .evaluation import PER_SAMPLE
from .forward_pass import ForwardPass, structure
from .torch_losses import OutputLoss
from .torch_metrics import OutputEvaluation

_VARIANCES = (0.1, 0.2)


class SsdMultibox(OutputLoss):
    """The multibox loss of SSD (Liu et al., 2016, section 2.2): ``class`` and ``box``.

    Args:
        image_size: height and width of the images in pixels.
        overlap: intersection over union from which an anchor is matched to a box.
        negatives: how many anchors of the background count for each that is matched.
    """

    def __init__(
        self,
        device: str | Device = Device.CPU,
        forward_pass: ForwardPass | None = None,
        image_size: tuple[int, int] = (224, 224),
        overlap: float = 0.5,
        negatives: float = 3.0,
    ) -> None:
        super().__init__(device, forward_pass)
        self.image_size = tuple(image_size)
        self.overlap, self.negatives = overlap, negatives

    def compare(self, outputs: Any, targets: Any) -> Any:
        import torch
        from torch.nn import functional

        logits, offsets = outputs
        anchors = _anchors(self.image_size, logits)
        labels, wanted = zip(
            *(match_anchors(anchors, _boxes(entry), self.overlap) for entry in targets), strict=True
        )
        classes, boxes = torch.stack(labels), torch.stack(wanted)
        highest, known = int(classes.max()), logits.shape[-1] - 1
        if highest > known:
            raise InputError(
                f"a batch has a box of class {highest}; the network knows 1..{known}",
                hint="the network's classes count the background",
            )
        positive = classes > 0
        count = positive.sum().clamp(min=1)
        entropy = functional.cross_entropy(
            logits.flatten(0, 1).float(), classes.flatten(), reduction="none"
        ).view_as(classes)
        background = entropy.detach().masked_fill(positive, -1.0)
        rank = background.argsort(1, descending=True).argsort(1)
        hard = rank < (self.negatives * positive.sum(1, keepdim=True)).clamp(min=1)
        box_loss = functional.smooth_l1_loss(
            offsets[positive].float(), boxes[positive], reduction="sum"
        )
        return {
            "class": entropy[positive | (hard & ~positive)].sum() / count,
            "box": box_loss / count,
        }


def _anchors(image_size: tuple[int, ...], logits: Any) -> Any:
    from ..zoo.networks.ssd import anchors

    found = anchors(*image_size).to(logits.device)
    if found.shape[0] != logits.shape[1]:
        raise InputError(
            f"the network predicts {logits.shape[1]} boxes; images of {list(image_size)} pixels"
            f" have {found.shape[0]} anchors",
            hint="loss.image_size and evaluation.kwargs.image_size are the size of the images",
        )
    return found


def _boxes(entry: Any) -> tuple[Any, Any]:
    if not isinstance(entry, Mapping) or not {"boxes", "labels"} <= set(entry):
        raise InputError(
            f"the target of an image is {structure(entry)}; expected a dict with boxes and labels"
        )
    return entry["boxes"].float().reshape(-1, 4), entry["labels"].long().reshape(-1)


def match_anchors(anchors: Any, target: tuple[Any, Any], overlap: float) -> tuple[Any, Any]:
    """Return the label of each anchor, and the offsets that lead to its box.

    Args:
        anchors: center x, center y, width and height, ``(anchors, 4)``.
        target: boxes ``(count, 4)`` and labels ``(count,)`` of an image.
        overlap: intersection over union from which an anchor belongs to a box.

    Returns:
        labels ``(anchors,)``, 0 for the background, and offsets ``(anchors, 4)``.
    """
    import torch

    boxes, labels = target
    classes = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
    if not len(boxes):
        return classes, torch.zeros_like(anchors)
    corners = torch.cat(
        [anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], 1
    )
    ious = _iou(corners, boxes)
    best, which = ious.max(1)
    # Every box gets the anchor that fits it best, whatever the overlap.
    forced = ious.argmax(0)
    best[forced] = 2.0
    which[forced] = torch.arange(len(boxes), device=anchors.device)
    classes = torch.where(best >= overlap, labels[which], classes)
    chosen = boxes[which]
    centers = (chosen[:, :2] + chosen[:, 2:]) / 2
    sizes = (chosen[:, 2:] - chosen[:, :2]).clamp(min=1e-6)
    offsets = torch.cat(
        [
            (centers - anchors[:, :2]) / anchors[:, 2:] / _VARIANCES[0],
            torch.log(sizes / anchors[:, 2:]) / _VARIANCES[1],
        ],
        1,
    )
    return classes, offsets


def _iou(first: Any, second: Any) -> Any:
    import torch

    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    inter = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (first, second)]
    return inter / (areas[0][:, None] + areas[1][None] - inter).clamp(min=1e-9)


class DetectionEvaluation(OutputEvaluation):
    """The COCO metrics (pycocotools), 0..1: ``map`` (at overlaps 0.5 to 0.95), ``map50``, ...

    Outputs are those of the zoo's SSD, or a list with a dict for each image: ``boxes``, ``scores``
    and ``labels``, boxes as in the targets.

    Args:
        forward_pass: how a batch reaches the model.
        image_size: height and width of the images in pixels.
        score: predictions with a lower score do not count.
        overlap: of two predictions of a class with a larger overlap, the weaker one is dropped.
        most: how many predictions count in one image.
    """

    default_key = "map"

    def __init__(
        self,
        forward_pass: ForwardPass | None = None,
        image_size: tuple[int, int] = (224, 224),
        score: float = 0.01,
        overlap: float = 0.5,
        most: int = 100,
    ) -> None:
        super().__init__(forward_pass)
        self.image_size = tuple(image_size)
        self.score, self.overlap, self.most = score, overlap, most

    def _compute_inference(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        transform: Any = None,
    ) -> Mapping[str, Any]:
        found: list[Any] = []
        wanted: list[Any] = []
        for outputs, targets in self.outputs_and_targets(model, data_loader, device, transform):
            wanted += [_boxes(entry) for entry in targets]
            if isinstance(outputs, list) and outputs and isinstance(outputs[0], Mapping):
                found += [(entry["boxes"], entry["scores"], entry["labels"]) for entry in outputs]
            else:
                found += self.decoded(*outputs)
        height, width = self.image_size
        metrics, image_ap = coco_evaluation(found, wanted, height, width)
        return {**metrics, PER_SAMPLE: {"image_ap": image_ap}}

    def decoded(self, logits: Any, offsets: Any) -> list[Any]:
        """Return boxes, scores and labels of each image, the strongest first."""
        import torch

        from ..zoo.networks.ssd import decode

        anchors = _anchors(self.image_size, logits)
        boxes = decode(offsets.float(), anchors).clamp(0, 1)
        scores = logits.float().softmax(-1)
        found = []
        for image_boxes, image_scores in zip(boxes, scores, strict=True):
            which, labels = torch.nonzero(image_scores[:, 1:] > self.score, as_tuple=True)
            kept = image_scores[which, labels + 1]
            order = kept.argsort(descending=True)[: 4 * self.most]
            found.append(
                _suppressed(
                    image_boxes[which[order]],
                    kept[order],
                    labels[order] + 1,
                    self.overlap,
                    self.most,
                )
            )
        return found


def _suppressed(boxes: Any, scores: Any, labels: Any, overlap: float, most: int) -> Any:
    """Drop predictions that a stronger one of their class overlaps; they come strongest first."""
    import torch

    rivals = (_iou(boxes, boxes) > overlap) & (labels[:, None] == labels[None])
    kept: list[int] = []
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for index in range(len(boxes)):
        if alive[index] and len(kept) < most:
            kept.append(index)
            alive &= ~rivals[index]
    return boxes[kept], scores[kept], labels[kept]
