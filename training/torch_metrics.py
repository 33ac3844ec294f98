"""The built-in evaluations for PyTorch tensors: classification and segmentation (torchmetrics)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from ..errors import InputError
from ..frameworks.base import import_framework
from .components import accepted
from .device import Device
from .evaluation import PER_SAMPLE, EvaluationFunction
from .forward_pass import ForwardPass
from .losses import only_tensor
from .torch_forward_pass import TorchForwardPass, move
from .torch_losses import label_images, require_labels

_ROWS = 8192
"""Rows that go into a metric at once: one update costs far more than what it adds up."""


class TorchEvaluationFunction(EvaluationFunction):
    """An evaluation of PyTorch; derive from it and write :meth:`_compute_inference`."""

    def apply(self, model: Any, data_loader: Iterable[Any], **kwargs: Any) -> Mapping[str, Any]:
        compute = self._compute_inference
        with evaluating(model):
            found: Mapping[str, Any] = compute(model, data_loader, **_taken(compute, kwargs))
        return found

    def _compute_inference(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        transform: Any = None,
    ) -> Mapping[str, Any]:
        """Return metrics by name.

        Args:
            model: the model, in eval mode and without gradients.
            data_loader: the batches of a split.
            device: where to compute.
            transform: a function of a batch that is applied first.
        """
        raise NotImplementedError(f"{type(self).__name__} has no _compute_inference")


def _taken(function: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return accepted(function, kwargs)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into eval mode, without gradients, and back into the mode that it was in."""
    # A model of another framework does not need PyTorch, and has no gradients to leave out.
    torch = sys.modules.get("torch")
    was_training = bool(getattr(model, "training", False))
    if hasattr(model, "eval"):
        model.eval()
    try:
        with nullcontext() if torch is None else torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


class OutputEvaluation(TorchEvaluationFunction):
    """An evaluation that compares outputs with targets, batch by batch.

    Args:
        forward_pass: how a batch reaches the model; batches ``(inputs, targets)`` by default.
    """

    def __init__(self, forward_pass: ForwardPass | None = None) -> None:
        self.forward_pass = forward_pass or TorchForwardPass((0, "_"))

    def outputs_and_targets(
        self, model: Any, data_loader: Iterable[Any], device: str | Device, transform: Any = None
    ) -> Iterator[tuple[Any, Any]]:
        """Yield what the model returns for each batch, and the targets, on the device.

        Raises:
            InputError: there is no batch.
        """
        batch = None
        for batch in data_loader:
            if transform is not None:
                batch = transform(batch)
            x = self.forward_pass.extract_model_inputs(batch)
            targets = move(self.forward_pass.extract_targets(batch), device)
            yield self.forward_pass.model_call(model, x, device), targets
        if batch is None:
            raise InputError("the split gave no batch; expected at least one")


class ClassificationEvaluation(OutputEvaluation):
    """``accuracy``, and ``top5`` where there are more than five classes, in percent (0..100).

    Outputs are scores ``(batch, classes)``, targets labels ``(batch,)`` or ``(batch, 1)``, or
    one-hot ``(batch, classes)``. ``per_sample``: ``accuracy`` is 1 for a correct answer, else 0.
    """

    default_key = "accuracy"

    def _compute_inference(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        transform: Any = None,
    ) -> Mapping[str, Any]:
        torch = import_framework("torch", "torch")
        counts: dict[str, Any] = {}
        correct: list[Any] = []
        rows: list[tuple[Any, Any]] = []
        for outputs, targets in self.outputs_and_targets(model, data_loader, device, transform):
            scores = only_tensor(outputs)
            rows.append((scores, _labels(targets, scores)))
            if sum(len(item[1]) for item in rows) >= _ROWS:
                _count(rows, counts, correct)
        _count(rows, counts, correct)
        metrics: dict[str, Any] = {}
        for name, metric in counts.items():
            # true positives and support of all samples: exact, where a ratio in float32 is not
            found = metric.compute()
            metrics[name] = 100.0 * int(found[0]) / int(found[4])
        hits = torch.cat(correct).cpu().numpy()
        return {**metrics, PER_SAMPLE: {"accuracy": hits.astype("uint8")}}


def _labels(targets: Any, scores: Any) -> Any:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(
            f"the model returned scores of shape {tuple(scores.shape)}; expected (batch, classes),"
            " two classes at least",
            hint="give an evaluation of your own (module:attribute)",
        )
    if targets.ndim == 2 and targets.shape == scores.shape and targets.shape[1] > 1:
        return targets.argmax(1)
    if targets.numel() != scores.shape[0]:
        raise InputError(
            f"a batch has labels of shape {tuple(targets.shape)} for {scores.shape[0]} samples;"
            " expected one a sample"
        )
    return targets.reshape(-1).long()


def _count(rows: list[tuple[Any, Any]], counts: dict[str, Any], correct: list[Any]) -> None:
    """Add rows to the metrics, and forget them."""
    if not rows:
        return
    torch = import_framework("torch", "torch")
    classification = import_framework("torchmetrics.classification", "train")

    scores = torch.cat([item[0] for item in rows]).float()
    labels = torch.cat([item[1] for item in rows])
    rows.clear()
    classes = scores.shape[1]
    require_labels(labels, classes, sum(map(len, correct)))
    if not counts:
        ranks = {"accuracy": 1} | ({"top5": 5} if classes > 5 else {})
        for name, top_k in ranks.items():
            counts[name] = classification.MulticlassStatScores(
                classes, top_k=top_k, average="micro", validate_args=False
            ).to(scores.device)
    for metric in counts.values():
        metric.update(scores, labels)
    correct.append(scores.argmax(1) == labels)


class SegmentationEvaluation(OutputEvaluation):
    """``pixel_accuracy`` and ``miou``, 0..1, of logits ``(batch, classes, height, width)``.

    ``miou`` is the mean of the intersection over union of the classes that occur, over the whole
    set. ``per_sample``: ``pixel_accuracy`` of each image; of one without a pixel that counts, 1.

    Args:
        forward_pass: how a batch reaches the model.
        ignore_index: label that does not count.
    """

    default_key = "miou"

    def __init__(self, forward_pass: ForwardPass | None = None, ignore_index: int = 255) -> None:
        super().__init__(forward_pass)
        self.ignore_index = ignore_index

    def _compute_inference(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        transform: Any = None,
    ) -> Mapping[str, Any]:
        torch = import_framework("torch", "torch")
        classification = import_framework("torchmetrics.classification", "train")
        metric = None
        images: list[Any] = []
        for outputs, targets in self.outputs_and_targets(model, data_loader, device, transform):
            logits = only_tensor(outputs)
            if logits.ndim != 4 or logits.shape[1] < 2:
                raise InputError(
                    f"the model returned logits of shape {tuple(logits.shape)}; expected"
                    " (batch, classes, height, width), two classes at least",
                    hint="give an evaluation of your own (module:attribute)",
                )
            labels = label_images(logits, targets)
            require_labels(labels, logits.shape[1], sum(map(len, images)), self.ignore_index)
            predicted = logits.argmax(1)
            if metric is None:
                metric = classification.MulticlassConfusionMatrix(
                    logits.shape[1], ignore_index=self.ignore_index, validate_args=False
                ).to(logits.device)
            metric.update(predicted, labels)
            counts = labels != self.ignore_index
            hits = ((predicted == labels) & counts).flatten(1).sum(1).double()
            total = counts.flatten(1).sum(1).double()
            images.append(torch.where(total > 0, hits / total.clamp(min=1), 1.0))
        assert metric is not None
        matrix = metric.compute().double()
        hits, union = matrix.diag(), matrix.sum(0) + matrix.sum(1) - matrix.diag()
        occurs = union > 0
        return {
            "pixel_accuracy": float(hits.sum() / matrix.sum().clamp(min=1)),
            "miou": float((hits[occurs] / union[occurs]).mean()) if bool(occurs.any()) else 0.0,
            PER_SAMPLE: {"pixel_accuracy": torch.cat(images).cpu().numpy()},
        }
