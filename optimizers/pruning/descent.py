"""Where the search goes next: down in steps, each of which has to stay within delta."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Status = Literal["accepted", "missed", "rejected early", "slower", "failed"]

_GROWTH = 1.15
_LARGEST = 2.0
_WORTH_MORE = 2.5
"""A candidate whose drop is up to this many times delta gets a second training."""


@dataclass(frozen=True)
class Plan:
    """The next candidate.

    Attributes:
        parent: the trial that it is made of; empty for the reference.
        ratio: of the parent's cost to its own; 1 where the parent is only trained longer.
        limit: a drop above it is of no use.
    """

    parent: str
    ratio: float
    limit: float

    @property
    def is_retraining(self) -> bool:
        """Whether the parent is trained longer, as it is."""
        return self.ratio == 1.0


class Descent:
    """Decides from what was measured so far, and nothing else.

    A candidate within delta is where the next step starts. One that missed by little is trained
    once more; one that missed by more, or again, is given up, and a smaller step is made from where
    it came. The search has converged when steps get too small to be worth it.

    Args:
        delta: the permitted drop.
        level: 2 begins with smaller steps.
        deepsearch: go on with smaller steps at the end.
    """

    def __init__(self, delta: float, level: int = 1, deepsearch: bool = False) -> None:
        self.delta = delta
        self.ratio = 1.6 if level == 1 else 1.45
        self.least = 1.03 if deepsearch else 1.15 if level == 1 else 1.08
        self.best = ""
        self.again: str | None = None
        self.converged = False

    def plan(self) -> Plan | None:
        """Return the next candidate; None when the search has converged."""
        if self.converged:
            return None
        if self.again is not None:
            return Plan(self.again, 1.0, self.delta)
        return Plan(self.best, self.ratio, max(_WORTH_MORE * self.delta, 1e-12))

    def learn(self, name: str, status: Status, drop: float | None) -> None:
        """Take in how a candidate ended.

        Args:
            name: of the trial.
            status: how.
            drop: its drop, if it was measured.
        """
        was_again, self.again = self.again is not None, None
        if status == "accepted":
            self.best = name
            assert drop is not None
            if drop < self.delta / 2 and not was_again:
                self.ratio = min(self.ratio * _GROWTH, _LARGEST)
            return
        is_near = drop is not None and drop <= _WORTH_MORE * self.delta
        if status == "missed" and not was_again and is_near:
            self.again = name
            return
        self.ratio = math.sqrt(self.ratio)
        self.converged = self.ratio < self.least
