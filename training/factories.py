"""What makes optimizers and schedulers, and trains in place of Ingot's own loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class NativeOptimizerFactory(ABC):
    """Makes the framework's own optimizer."""

    @abstractmethod
    def make(self, native_model: Any) -> Any:
        """Return the optimizer of the parameters of a model."""


class NativeSchedulerFactory(ABC):
    """Makes the framework's own learning-rate scheduler."""

    @abstractmethod
    def make(self, native_optimizer: Any) -> Any:
        """Return the scheduler of an optimizer."""


class ExternalTrainingLoop(ABC):
    """A training loop of the user's own."""

    @abstractmethod
    def train(self, model: Any, epochs: int, validation: Any, finetuning: bool) -> Any:
        """Train a model and return it.

        Args:
            model: the network.
            epochs: how long.
            validation: a function of a model that returns the metrics on ``eval_split``.
            finetuning: whether this is the short training between the steps of a search.
        """
