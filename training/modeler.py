"""The modeler: a network with its loss and metrics, whatever the framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from .declared import DeclaredTensors
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

    def comparing(self, declared: DeclaredTensors) -> AbstractContextManager[None]:
        """Within the context, the first batches have the shapes that the spec declares.

        Args:
            declared: raises a SpecError where a tensor has another one.
        """
        return nullcontext()

    @abstractmethod
    def batch_accuracy(self, batch: Any) -> float | None:
        """Return the accuracy (0..100) of the last training batch; None where there is none."""

    @abstractmethod
    def start_average(self) -> None:
        """Begin to average the weights, unless that was done before.

        A callback does that in ``before_run``, where a run that goes on is not restored yet.
        """

    @abstractmethod
    def update_average(self, decay: float) -> None:
        """Move the averaged weights towards the present ones: ``decay`` is what stays."""

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """The averaged weights stand in the network for as long as the context lasts."""

    @abstractmethod
    def write_weights(self, path: Path) -> None:
        """Write the weights, the averaged ones if there are any, to a safetensors file."""

    def write_model(self, weights: Path, folder: Path) -> Path | None:
        """Write the network itself beside its weights, where its framework has files for that.

        Args:
            weights: what :meth:`write_weights` wrote.
            folder: where it goes.

        Returns:
            the file; None where code makes the network.
        """
        return None

    @abstractmethod
    def not_finite(self) -> str | None:
        """Return the first weight, or averaged weight, that is NaN or infinite; None is none.

        What was not finite when the network was built, such as a mask of ``-inf``, does not count.
        """

    @abstractmethod
    def load_pretrained(self, path: Path, skip: tuple[str, ...], label: str) -> list[str]:
        """Start from the weights of a file; return the tensors that keep their initial values.

        Args:
            path: the weights.
            skip: parts of names that are not restored.
            label: what messages call the network.

        Raises:
            ModelError: a tensor that is not skipped is missing, or has another shape.
            SpecError: a pattern fits nothing.
        """

    @abstractmethod
    def share(self, local_rank: int) -> None:
        """Train together with the other workers from now on: their gradients are averaged.

        Args:
            local_rank: number of this worker on its machine, which is that of its accelerator.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return weights and averaged weights, for a checkpoint: dicts, numbers and tensors."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` returned.

        Weights are averaged after it if they were before: without an average in the state, from
        the weights in it on; an average in the state that nobody wants any more is left out.
        """

    @abstractmethod
    def keep_outputs(self) -> None:
        """Keep the outputs of each training batch from now on, for :meth:`batch_accuracy`."""
