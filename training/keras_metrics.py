"""The built-in evaluations for Keras, which measure arrays, and the metrics that Keras brings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import InputError, SpecError
from ..frameworks.keras import import_keras
from ..specs.declare import Component
from .components import BUILT_IN, Components
from .device import Device
from .evaluation import PER_SAMPLE, EvaluationFunction
from .forward_pass import ForwardPass
from .inputter import Array
from .keras_forward_pass import KerasForwardPass
from .keras_losses import refuse_of_torch, require_labels, require_sizes
from .losses import only_tensor
from .named import called, class_named, classes_of


class KerasEvaluationFunction(EvaluationFunction):
    """An evaluation that compares outputs with targets, batch by batch, as arrays.

    Args:
        forward_pass: how a batch reaches the model; batches ``(inputs, targets)`` by default.
    """

    def __init__(self, forward_pass: ForwardPass | None = None) -> None:
        self.forward_pass = forward_pass or KerasForwardPass((0, "_"))

    def outputs_and_targets(
        self, model: Any, data_loader: Iterable[Any], device: str | Device
    ) -> Iterator[tuple[Array, Array]]:
        """Yield what the model returns for each batch, and the targets.

        Raises:
            InputError: there is no batch.
        """
        batch = None
        for batch in data_loader:
            x = self.forward_pass.extract_model_inputs(batch)
            targets = as_array(self.forward_pass.extract_targets(batch))
            outputs = self.forward_pass.model_call(model, x, device)
            yield as_array(only_tensor(outputs)), targets
        if batch is None:
            raise InputError("the split gave no batch; expected at least one")


def as_array(value: Any) -> Array:
    """Return a tensor of any framework as an array."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


class ClassificationEvaluation(KerasEvaluationFunction):
    """``accuracy``, and ``top5`` where there are more than five classes, in percent (0..100).

    Outputs are scores ``(batch, classes)``, targets labels ``(batch,)`` or ``(batch, 1)``, or
    one-hot ``(batch, classes)``. ``per_sample``: ``accuracy`` is 1 for a correct answer, else 0.
    """

    default_key = "accuracy"

    def apply(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        **kwargs: Any,
    ) -> Mapping[str, Any]:
        hits: list[Array] = []
        in_five: int | None = None
        for scores, targets in self.outputs_and_targets(model, data_loader, device):
            labels = _labels(targets, scores)
            require_labels(labels, scores.shape[1], sum(map(len, hits)))
            hits.append(scores.argmax(1) == labels)
            if scores.shape[1] > 5:
                in_five = (in_five or 0) + int((_ranks(scores, labels) < 5).sum())
        correct = np.concatenate(hits)
        metrics = {"accuracy": 100.0 * int(correct.sum()) / len(correct)}
        if in_five is not None:
            metrics["top5"] = 100.0 * in_five / len(correct)
        return {**metrics, PER_SAMPLE: {"accuracy": correct.astype(np.uint8)}}


def _labels(targets: Array, scores: Array) -> Array:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(
            f"the model returned scores of shape {scores.shape}; expected (batch, classes), two"
            " classes at least",
            hint="give an evaluation of your own (module:attribute)",
        )
    if targets.ndim == 2 and targets.shape == scores.shape:
        return targets.argmax(1)
    return require_sizes(targets, (len(scores),)).astype(np.int64)


def _ranks(scores: Array, labels: Array) -> Array:
    """Return how many classes come before the right one; of equal scores the first class does."""
    own = np.take_along_axis(scores, labels[:, None], 1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    ranks: Array = ((scores > own) | ((scores == own) & before)).sum(1)
    return ranks


class SegmentationEvaluation(KerasEvaluationFunction):
    """``pixel_accuracy`` and ``miou``, 0..1, of logits ``(batch, height, width, classes)``.

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

    def apply(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        **kwargs: Any,
    ) -> Mapping[str, Any]:
        matrix: Any = 0
        images: list[Array] = []
        for logits, targets in self.outputs_and_targets(model, data_loader, device):
            if logits.ndim != 4 or logits.shape[-1] < 2:
                raise InputError(
                    f"the model returned logits of shape {logits.shape}; expected (batch, height,"
                    " width, classes), two classes at least",
                    hint="give an evaluation of your own (module:attribute)",
                )
            classes = logits.shape[-1]
            labels = require_sizes(targets, logits.shape[:-1])
            require_labels(labels, classes, sum(map(len, images)), self.ignore_index)
            predicted, counts = logits.argmax(-1), labels != self.ignore_index
            pairs = classes * labels[counts].astype(np.int64) + predicted[counts]
            matrix = matrix + np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
            hits = ((predicted == labels) & counts).sum((1, 2))
            total = counts.sum((1, 2))
            images.append(np.where(total > 0, hits / np.maximum(total, 1), 1.0))
        hits, union = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        occurs = union > 0
        return {
            "pixel_accuracy": float(hits.sum() / max(1, matrix.sum())),
            "miou": float((hits[occurs] / union[occurs]).mean()) if occurs.any() else 0.0,
            PER_SAMPLE: {"pixel_accuracy": np.concatenate(images)},
        }


class MetricEvaluation(KerasEvaluationFunction):
    """A metric of ``keras.metrics`` over the whole split, under the name that it has.

    Args:
        metric: the ``keras.metrics.Metric``, updated with targets and outputs.
        forward_pass: how a batch reaches the model.
    """

    def __init__(self, metric: Any, forward_pass: ForwardPass | None = None) -> None:
        super().__init__(forward_pass)
        self.metric = metric
        self.default_key = metric.name

    def apply(
        self,
        model: Any,
        data_loader: Iterable[Any],
        device: str | Device = Device.CPU,
        **kwargs: Any,
    ) -> Mapping[str, Any]:
        self.metric.reset_state()
        for outputs, targets in self.outputs_and_targets(model, data_loader, device):
            self.metric.update_state(targets, outputs)
        return {self.metric.name: float(self.metric.result())}


def make_evaluation(wanted: Component, components: Components, **context: Any) -> Any:
    """Return the evaluation that a spec names.

    Args:
        wanted: a built-in evaluation, a class of ``keras.metrics``, or ``module:attribute``.
        components: the parts of the spec.
        context: ``forward_pass`` and ``device``.

    Raises:
        SpecError: there is no such evaluation for Keras, or it does not take its arguments.
    """
    from .torch_metrics import TorchEvaluationFunction

    key, kind = "evaluation.function", "keras_evaluation"
    where = f"{components.label}: {key}"
    forward_pass = context["forward_pass"]
    if not wanted.is_entrypoint and wanted.name not in BUILT_IN[kind]:
        refuse_of_torch(wanted.name, "evaluation", kind, where)
        metrics = import_keras().metrics
        known = classes_of(metrics, metrics.Metric)
        what = f"a class of keras.metrics, or one of {', '.join(sorted(BUILT_IN[kind]))}"
        found = class_named(wanted.name, known, [*BUILT_IN[kind], *known], where, what)
        return MetricEvaluation(called(found, (), dict(wanted.kwargs), where), forward_pass)
    found = components.make(kind, wanted, key, **context)
    if isinstance(found, TorchEvaluationFunction):
        raise SpecError(
            f"{where}: {wanted.name!r} is for networks of PyTorch, and the network one of Keras;"
            " expected an EvaluationFunction, or a function (model, loader)"
        )
    if any(kind.__module__.startswith("keras.") for kind in type(found).__mro__):
        return MetricEvaluation(found, forward_pass)
    return found
