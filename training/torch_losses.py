"""The built-in losses for PyTorch, and those that PyTorch brings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import InputError, SpecError
from ..specs.hints import did_you_mean
from .device import Device
from .forward_pass import ForwardPass
from .losses import LossFunction, label_error, only_tensor
from .torch_forward_pass import TorchForwardPass, move


class TorchLossFunction(LossFunction):
    """A loss of PyTorch; derive from it and write ``__call__(model, batch)``."""

    def __call__(self, model: Any, batch: Any) -> Any:
        raise NotImplementedError


class OutputLoss(TorchLossFunction):
    """A loss that compares what the model returns with the targets of the batch.

    Args:
        device: where it is computed.
        forward_pass: how a batch reaches the model; batches ``(inputs, targets)`` by default.
    """

    def __init__(
        self, device: str | Device = Device.CPU, forward_pass: ForwardPass | None = None
    ) -> None:
        super().__init__(device)
        self.forward_pass = forward_pass or TorchForwardPass((0, "_"))

    def __call__(self, model: Any, batch: Any) -> Any:
        x = self.forward_pass.extract_model_inputs(batch)
        targets = move(self.forward_pass.extract_targets(batch), self.device)
        return self.compare(self.forward_pass.model_call(model, x, self.device), targets)

    def compare(self, outputs: Any, targets: Any) -> Any:
        """Return the loss of a batch.

        Args:
            outputs: what the model returned.
            targets: the targets of the batch, on the same device.
        """
        raise NotImplementedError


class CrossEntropy(OutputLoss):
    """Cross entropy of logits ``(batch, classes)`` with labels ``(batch,)`` or ``(batch, 1)``.

    Targets may be probabilities ``(batch, classes)``, too.

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

    def __call__(self, model: Any, batch: Any) -> Any:
        x = self.forward_pass.extract_model_inputs(batch)
        targets = self.forward_pass.extract_targets(batch)
        outputs = self.forward_pass.model_call(model, x, self.device)
        # A GPU does not come back from a label out of range: those of the batch are looked at
        # before, as long as they lie in the memory of the host.
        if getattr(outputs, "is_cuda", False) and outputs.ndim > 1:
            labels = move(targets, Device.CPU) if isinstance(targets, np.ndarray) else targets
            if _is_label(labels) and not labels.is_cuda:
                require_labels(labels, outputs.shape[1], None, self.ignore_index)
        return self.compare(outputs, move(targets, self.device))

    def compare(self, outputs: Any, targets: Any) -> Any:
        from torch.nn import functional

        logits = only_tensor(outputs)
        if targets.ndim == 2 and targets.shape[1] == 1 and logits.ndim == 2:
            targets = targets.flatten()
        if not targets.is_floating_point():
            targets = targets.long()
            if logits.ndim == 4:
                targets = label_images(logits, targets)
        try:
            return functional.cross_entropy(
                logits,
                targets,
                label_smoothing=self.label_smoothing,
                ignore_index=self.ignore_index,
            )
        except (IndexError, RuntimeError):
            # Looked at only now, so that a step costs nothing more.
            if _is_label(targets) and targets.shape[:1] == logits.shape[:1]:
                require_labels(targets, logits.shape[1], None, self.ignore_index)
            raise


class SegmentationCrossEntropy(CrossEntropy):
    """Cross entropy of every pixel: logits ``(batch, classes, height, width)``, labels without
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


class BinaryCrossEntropy(OutputLoss):
    """Binary cross entropy of logits with targets 0..1 of the same number of elements."""

    def compare(self, outputs: Any, targets: Any) -> Any:
        from torch.nn import functional

        logits = only_tensor(outputs)
        targets = targets.to(logits.dtype).reshape(logits.shape)
        return functional.binary_cross_entropy_with_logits(logits, targets)


class MeanSquaredError(OutputLoss):
    """Mean squared difference from targets of the same number of elements."""

    def compare(self, outputs: Any, targets: Any) -> Any:
        from torch.nn import functional

        found = only_tensor(outputs)
        return functional.mse_loss(found, targets.to(found.dtype).reshape(found.shape))


class Criterion(OutputLoss):
    """A ``torch.nn`` loss, called with outputs and targets.

    Args:
        criterion: the module.
    """

    def __init__(
        self,
        criterion: Any,
        device: str | Device = Device.CPU,
        forward_pass: ForwardPass | None = None,
    ) -> None:
        self.criterion = criterion
        super().__init__(device, forward_pass)

    def to_device(self, device: str | Device) -> None:
        from .torch_forward_pass import torch_device_of

        super().to_device(device)
        self.criterion.to(torch_device_of(device))

    def compare(self, outputs: Any, targets: Any) -> Any:
        return self.criterion(only_tensor(outputs), targets)


def _is_label(value: Any) -> bool:
    return hasattr(value, "is_floating_point") and not value.is_floating_point()


def label_images(logits: Any, targets: Any) -> Any:
    """Return the labels of pixels as ``(batch, height, width)``, int64.

    Args:
        logits: ``(batch, classes, height, width)``.
        targets: as many labels as pixels; ``(batch, 1, height, width)`` does, too.

    Raises:
        InputError: there are more or fewer.
    """
    wanted = (logits.shape[0], *logits.shape[2:])
    if targets.numel() != math.prod(wanted):
        raise InputError(
            f"a batch has labels of shape {tuple(targets.shape)} for logits of shape"
            f" {tuple(logits.shape)}; expected {wanted}"
        )
    return targets.reshape(wanted).long()


def require_labels(
    labels: Any, classes: int, first: int | None, ignored: int | None = None
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
    if not bool(wrong.any()):
        return
    place = wrong.nonzero()[0].tolist()
    raise label_error(place, int(labels[tuple(place)]), classes, first, ignored)


def named_torch_loss(name: str, kwargs: dict[str, Any], where: str) -> Any:
    """Return a module of ``torch.nn`` by the name of its class, such as ``SmoothL1Loss``.

    Raises:
        SpecError: there is no such loss, or it does not take the arguments.
    """
    from torch import nn

    from .components import BUILT_IN

    known = [item for item in dir(nn) if item.endswith("Loss")]
    if name not in known:
        everything = [*BUILT_IN["loss"], *known]
        raise SpecError(
            f"{where}: found {name!r}; expected module:attribute, a loss of torch.nn, or one of"
            f" {', '.join(sorted(BUILT_IN['loss']))}",
            hint=did_you_mean(name, everything),
        )
    try:
        return getattr(nn, name)(**kwargs)
    except TypeError as error:
        raise SpecError(f"{where}: torch.nn.{name} cannot be made: {error}") from error
