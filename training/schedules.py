"""What learning-rate schedules need, whatever the framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import SpecError


def schedule_length(name: str, epochs: int, steps_per_epoch: int | None, interval: str) -> int:
    """Return in how many steps a schedule goes to the end of training.

    Args:
        name: the schedule, for messages.
        epochs: how long training lasts.
        steps_per_epoch: iterations of an epoch; None when the data does not say.
        interval: when it steps: ``eval``, ``epoch`` or ``iteration``.

    Raises:
        SpecError: it steps in iterations, and their number is not known.
    """
    if interval != "iteration":
        return max(1, epochs)
    if steps_per_epoch is None:
        raise SpecError(
            f"full_trainer.scheduler: {name!r} with the interval 'iteration' needs to know how many"
            " batches an epoch has; the training data has no len()",
            hint="give the loader a __len__, or use the interval 'epoch'",
        )
    return max(1, epochs * steps_per_epoch)


def decay_factors(boundaries: Sequence[int], decay: Any) -> list[float]:
    """Return what the learning rate is multiplied by at each boundary.

    Args:
        boundaries: steps of the schedule, which rise.
        decay: one factor, or one for each of them.

    Raises:
        TypeError: they do not rise, or there are more or fewer factors.
    """
    factors = list(decay) if isinstance(decay, list | tuple) else [decay] * len(boundaries)
    if len(factors) != len(boundaries) or list(boundaries) != sorted(boundaries):
        raise TypeError(f"boundaries {list(boundaries)} rise, with one decay {factors} for each")
    return factors
