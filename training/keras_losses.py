"""The built-in losses for Keras, and those that Keras brings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, SpecError
from ..frameworks.keras import import_keras
from ..specs.declare import Component
from ..specs.hints import did_you_mean
from .components import BUILT_IN, Components
from .device import Device
from .forward_pass import ForwardPass
from .keras_forward_pass import KerasForwardPass
from .losses import LossFunction, label_error, only_tensor
from .named import called, class_named, classes_of

if TYPE_CHECKING:
    from .inputter import Array


class KerasLossFunction(LossFunction):
    """A loss that compares what the model returns with the targets of the batch.

    It is called while TensorFlow traces the training step, with symbolic tensors.

    Args:
        device: where it is computed; TensorFlow places it itself.
        forward_pass: how a batch reaches the model; batches ``(inputs, targets)`` by default.
    """

    def __init__(
        self, device: str | Device = Device.CPU, forward_pass: ForwardPass | None = None
    ) -> None:
        super().__init__(device)
        self.forward_pass = forward_pass or KerasForwardPass((0, "_"))

    def __call__(self, model: Any, batch: Any) -> Any:
        x = self.forward_pass.extract_model_inputs(batch)
        targets = self.forward_pass.extract_targets(batch)
        return self.compare(self.forward_pass.model_call(model, x, self.device), targets)

    def compare(self, outputs: Any, targets: Any) -> Any:
        """Return the loss of a batch, a scalar.

        Args:
            outputs: what the model returned.
            targets: the targets of the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no compare")

    def explain(self, batch: Any) -> None:
        """Look at a batch that TensorFlow failed on, and raise what is wrong with it, if known."""


class CrossEntropy(KerasLossFunction):
    """Cross entropy of logits ``(batch, classes)`` with labels ``(batch,)`` or ``(batch, 1)``.

    Logits may have dimensions between (channels last: ``(batch, height, width, classes)``), which
    the labels then have, too. Targets may be probabilities of the shape of the logits.

    Args:
        label_smoothing: share of the probability that goes to all classes alike.
        ignore_index: label that does not count.
    """

    def __init__(
        self,
        device: str | Device = Device.CPU,
        forward_pass: ForwardPass | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(device, forward_pass)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self._classes: int | None = None

    def compare(self, outputs: Any, targets: Any) -> Any:
        keras = import_keras()
        ops, losses = keras.ops, keras.losses
        logits = only_tensor(outputs)
        self._classes = logits.shape[-1]
        if "float" in keras.backend.standardize_dtype(targets.dtype):
            return ops.mean(
                losses.categorical_crossentropy(
                    targets, logits, from_logits=True, label_smoothing=self.label_smoothing
                )
            )
        labels = ops.reshape(targets, ops.shape(logits)[:-1])
        counts = ops.not_equal(labels, self.ignore_index)
        labels = ops.where(counts, labels, ops.zeros_like(labels))
        if self.label_smoothing:
            wanted = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
            found = losses.categorical_crossentropy(
                wanted, logits, from_logits=True, label_smoothing=self.label_smoothing
            )
        else:
            found = losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        weights = ops.cast(counts, found.dtype)
        # As PyTorch: where no label counts, there is no mean, and the loss is NaN.
        return ops.sum(found * weights) / ops.sum(weights)

    def explain(self, batch: Any) -> None:
        labels = np.asarray(self.forward_pass.extract_targets(batch))
        if self._classes is not None and labels.dtype.kind in "iu":
            require_labels(labels, self._classes, None, self.ignore_index)


class SegmentationCrossEntropy(CrossEntropy):
    """Cross entropy of every pixel: logits ``(batch, height, width, classes)``, labels without
    ``classes``; 255 is the label that does not count.
    """

    def __init__(
        self,
        device: str | Device = Device.CPU,
        forward_pass: ForwardPass | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(device, forward_pass, label_smoothing, ignore_index)


class BinaryCrossEntropy(KerasLossFunction):
    """Binary cross entropy of logits with targets 0..1 of the same number of elements."""

    def compare(self, outputs: Any, targets: Any) -> Any:
        keras = import_keras()
        logits = only_tensor(outputs)
        targets = _like(targets, logits, keras)
        return keras.ops.mean(keras.losses.binary_crossentropy(targets, logits, from_logits=True))


class MeanSquaredError(KerasLossFunction):
    """Mean squared difference from targets of the same number of elements."""

    def compare(self, outputs: Any, targets: Any) -> Any:
        keras = import_keras()
        found = only_tensor(outputs)
        return keras.ops.mean(keras.ops.square(found - _like(targets, found, keras)))


def _like(targets: Any, found: Any, keras: Any) -> Any:
    shape = keras.ops.shape(found)
    return keras.ops.cast(keras.ops.reshape(targets, shape), found.dtype)


class Criterion(KerasLossFunction):
    """A loss of ``keras.losses``, called with targets and outputs.

    Args:
        criterion: the ``keras.losses.Loss``.
    """

    def __init__(
        self,
        criterion: Any,
        device: str | Device = Device.CPU,
        forward_pass: ForwardPass | None = None,
    ) -> None:
        super().__init__(device, forward_pass)
        self.criterion = criterion

    def compare(self, outputs: Any, targets: Any) -> Any:
        return self.criterion(targets, only_tensor(outputs))


def require_labels(
    labels: Array, classes: int, first: int | None, ignored: int | None = None
) -> None:
    """Check that labels are integers from 0 below the number of classes.

    Args:
        labels: ``(batch, ...)``, integers.
        classes: how many there are.
        first: number of the first sample in its split; None where that is not known.
        ignored: a label that does not count.

    Raises:
        InputError: one is not; the message has the number of its sample, from 0.
    """
    wrong = (labels < 0) | (labels >= classes)
    if ignored is not None:
        wrong &= labels != ignored
    if wrong.any():
        place = [int(index) for index in np.argwhere(wrong)[0]]
        raise label_error(place, int(labels[tuple(place)]), classes, first, ignored)


def make_loss(wanted: Component, components: Components, **context: Any) -> Any:
    """Return the loss that a spec names.

    Args:
        wanted: a built-in loss, a class of ``keras.losses``, or ``module:attribute``.
        components: the parts of the spec.
        context: ``device`` and ``forward_pass``.

    Raises:
        SpecError: there is no such loss for Keras, or it does not take its arguments.
        MissingDependencyError: Keras or TensorFlow is not installed.
    """
    keras = import_keras()
    key, kind = "loss", "keras_loss"
    where = f"{components.label}: {key}"
    if not wanted.is_entrypoint and wanted.name not in BUILT_IN[kind]:
        known = classes_of(keras.losses, keras.losses.Loss)
        refuse_of_torch(wanted.name, "loss", kind, where)
        names = [*BUILT_IN[kind], *known]
        what = f"a class of keras.losses, or one of {', '.join(sorted(BUILT_IN[kind]))}"
        found = class_named(wanted.name, known, names, where, what)
        return Criterion(called(found, (), dict(wanted.kwargs), where), **context)
    found = components.make(kind, wanted, key, **context)
    if isinstance(found, keras.losses.Loss):
        return Criterion(found, **context)
    if not callable(found) or _is_of_torch(found):
        raise SpecError(
            f"{where} {wanted.name!r} is a {type(found).__name__}, and the network one of Keras;"
            " expected a loss of keras.losses, or a function (model, batch)"
        )
    return found


def refuse_of_torch(name: str, kind: str, own: str, where: str) -> None:
    """Refuse a built-in part that there is for PyTorch only.

    Args:
        name: what the spec says.
        kind: the kind of :data:`~ingot.training.components.BUILT_IN` with those of PyTorch.
        own: the kind with those of Keras.
        where: the key of the spec, for messages.

    Raises:
        SpecError: it is one.
    """
    if name in BUILT_IN[kind]:
        raise SpecError(
            f"{where}: found {name!r}, which is for networks of PyTorch; for one of Keras, expected"
            f" {', '.join(sorted(BUILT_IN[own]))}, a class of Keras, or module:attribute",
            hint=did_you_mean(name, BUILT_IN[own]),
        )


def _is_of_torch(found: Any) -> bool:
    from .torch_losses import TorchLossFunction

    names = {kind.__module__.partition(".")[0] for kind in type(found).__mro__}
    return "torch" in names or isinstance(found, TorchLossFunction)


def require_sizes(labels: Array, wanted: tuple[int, ...]) -> Array:
    """Return labels in a shape.

    Raises:
        InputError: they are more or fewer.
    """
    if labels.size != math.prod(wanted):
        raise InputError(f"a batch has labels of shape {labels.shape}; expected {wanted}")
    return labels.reshape(wanted)
