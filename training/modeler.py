"""The modeler: a network with its loss and metrics, whatever the framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .evaluation import Evaluation
from .forward_pass import ForwardPass


class Modeler(ABC):
    """Owns the network, the forward pass, the loss and the evaluation of one problem.

    Attributes:
        network: the framework's own model.
        forward_pass: how a batch reaches it.
        loss: ``(model, batch)`` to what is minimised.
        evaluation: ``(model, loader)`` to metrics.
    """

    network: Any
    forward_pass: ForwardPass
    loss: Any
    evaluation: Any

    @abstractmethod
    def compute_loss(self, batch: Any) -> Mapping[str, Any]:
        """Return the parts of the loss of a batch, scalars whose sum is minimised."""

    @abstractmethod
    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        """Measure the network on a split; the averaged one, when weights are averaged."""

    @abstractmethod
    def batch_accuracy(self, batch: Any) -> float | None:
        """Return the accuracy (0..100) of the last training batch; None where there is none."""

    @abstractmethod
    def start_average(self) -> None:
        """Begin to average the weights, unless that was done before."""

    @abstractmethod
    def update_average(self, decay: float) -> None:
        """Move the averaged weights towards the present ones: ``decay`` is what stays."""

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights stand in the network for as long as the context lasts."""

    @abstractmethod
    def write_weights(self, path: Path) -> None:
        """Write the weights, the averaged ones if there are any, to a safetensors file."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
