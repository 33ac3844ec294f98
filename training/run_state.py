"""Where a run stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class RunState:
    """Where a run stands; a checkpoint holds it.

    Attributes:
        epoch: epochs that are complete.
        batch: batches of the present epoch that are complete.
        step: all batches that are complete.
        history: of each evaluation ``epoch``, ``step``, ``loss``, ``learning_rate``, ``metrics``.
        best: the best value of the metric that counts.
        best_epoch: the epoch after which it was measured.
        stop_reason: why training stops before its last epoch.
        seconds: how long it ran, over all its parts.
        loss_sum: losses of the steps since the last evaluation.
        loss_count: how many they are.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    stop_reason: str | None = None
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)
