"""How much a search may do: a cap on evaluations and on time, and the forecast of both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

StoppedBy = Literal["converged", "max_evaluations", "max_time", "signal"]


class StopSearch(Exception):
    """The search has to end now.

    Attributes:
        by: why.
    """

    def __init__(self, by: StoppedBy) -> None:
        super().__init__(by)
        self.by: StoppedBy = by


@dataclass(frozen=True)
class Forecast:
    """What a search will take at most.

    Attributes:
        max_evaluations: of models on the evaluation split.
        max_epochs: of training, over all steps.
        seconds: about how long so much takes on this machine.
        max_seconds: when the search ends, whatever it has.
    """

    max_evaluations: int
    max_epochs: int
    seconds: float
    max_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "max_evaluations": self.max_evaluations,
            "max_epochs": self.max_epochs,
            "seconds": round(self.seconds, 1),
            "max_seconds": round(self.max_seconds, 1),
        }


@dataclass
class Budget:
    """What is spent, of what may be.

    Attributes:
        max_evaluations: of models on the evaluation split.
        max_seconds: over all parts of a search that was resumed.
        reserved: evaluations that are kept for the files that ship.
        evaluations: how many there were.
        epochs: how many epochs were trained.
        before: seconds that earlier parts of the search took.
        stop_requested: somebody asked it to end.
    """

    max_evaluations: int
    max_seconds: float = float("inf")
    reserved: int = 0
    evaluations: int = 0
    epochs: float = 0
    before: float = 0.0
    stop_requested: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds over all parts of the search."""
        return self.before + time.monotonic() - self.started

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return self.elapsed > self.max_seconds

    def spend(self, evaluations: int = 0, epochs: float = 0) -> None:
        """Count what was done."""
        self.evaluations += evaluations
        self.epochs += epochs

    def request_stop(self) -> bool:
        """Ask the search to end after its present step; False when it was asked before."""
        was_asked, self.stop_requested = self.stop_requested, True
        return not was_asked

    def check(self, evaluations: int = 0) -> None:
        """Ask whether so many more evaluations may be begun.

        Raises:
            StopSearch: no.
        """
        if self.stop_requested:
            raise StopSearch("signal")
        if self.evaluations + evaluations > self.max_evaluations - self.reserved:
            raise StopSearch("max_evaluations")
        if self.is_late:
            raise StopSearch("max_time")
