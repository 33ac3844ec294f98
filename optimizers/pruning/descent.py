"""Where the search goes next: down in steps, each of which has to stay within delta."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Status = Literal["accepted", "missed", "rejected early", "slower", "failed"]

_LARGEST = 2.0
_WORTH_MORE = 2.5
"""A candidate whose drop is up to this many times delta is trained longer."""
_FALLS_FAST = 0.85
"""What is left of a drop after another training that makes one more worth it."""
_SMALLEST = 1.03
_LEAST_GROWTH, _MOST_GROWTH = 0.3, 1.3
"""Powers of the last step's ratio that the next one has, when all of delta is used up or none."""
_SLOWER = 0.2
_MOST_RATES = 3


@dataclass(frozen=True)
class Plan:
    """The next candidate.

    Attributes:
        parent: the trial that it is made of; empty for the reference.
        ratio: of the parent's cost to its own; 1 where the parent is only trained longer.
        limit: a drop above it is of no use.
        rate: factor of the learning rate.
    """

    parent: str
    ratio: float
    limit: float
    rate: float = 1.0

    @property
    def is_retraining(self) -> bool:
        """Whether the parent is trained longer, as it is."""
        return self.ratio == 1.0


@dataclass(frozen=True)
class _First:
    """A first candidate, trained with some learning rate."""

    name: str
    status: Status
    drop: float
    rate: float


class Descent:
    """Decides from what was measured so far, and nothing else.

    If the first candidate misses delta by far it is trained again with lower learning rates, for as
    long as that helps; the best is kept.

    A candidate within delta is where the next step starts. One that missed by little is trained
    longer, once, and then for as long as its drop falls fast; one that missed by more is given up,
    and a smaller step is made from where it came. The search has converged when steps get too small
    to be worth it.

    Args:
        delta: the permitted drop.
        level: 2 begins with smaller steps.
        deepsearch: go on with smaller steps at the end.
        rate: factor of the learning rate to begin with; None where nothing is trained with it.
        trains: whether candidates are trained at all.
    """

    def __init__(
        self,
        delta: float,
        level: int = 1,
        deepsearch: bool = False,
        rate: float | None = 1.0,
        trains: bool = True,
    ) -> None:
        self.delta = delta
        self.ratio = 1.75 if level == 1 else 1.5
        self.least = 1.03 if deepsearch else 1.15 if level == 1 else 1.08
        self.rate = 1.0 if rate is None else rate
        self.best = ""
        self.again: str | None = None
        self.converged = False
        self._drop = math.inf
        self._trains = trains
        self._first: list[_First] | None = [] if rate is not None else None

    def plan(self) -> Plan | None:
        """Return the next candidate; None when the search has converged."""
        if self.converged:
            return None
        if self.again is not None:
            return Plan(self.again, 1.0, max(self.delta, _FALLS_FAST * self._drop), self.rate)
        limit = max(_WORTH_MORE * self.delta, 1e-12)
        return Plan(self.best, self.ratio, limit, self.rate)

    def learn(self, name: str, status: Status, drop: float | None) -> None:
        """Take in how a candidate ended.

        Args:
            name: of the trial.
            status: how.
            drop: its drop, if it was measured.
        """
        if self._first is not None:
            self._first.append(_First(name, status, math.inf if drop is None else drop, self.rate))
            if not self._has_rate(self._first):
                self.rate *= _SLOWER
                return
            best = min(self._first, key=lambda entry: entry.drop)
            self._first, self.rate = None, best.rate
            name, status = best.name, best.status
            drop = None if math.isinf(best.drop) else best.drop
        self._learn(name, status, drop)

    def _has_rate(self, tried: list[_First]) -> bool:
        last = tried[-1]
        if last.status in ("accepted", "slower") or len(tried) == _MOST_RATES:
            return True
        if last.drop <= _WORTH_MORE * self.delta:
            return True
        return len(tried) > 1 and last.drop >= tried[-2].drop

    def _learn(self, name: str, status: Status, drop: float | None) -> None:
        was_again, self.again = self.again is not None, None
        if status == "accepted":
            self.best = name
            assert drop is not None
            self.ratio = self._next_ratio(drop, 1.0 if was_again else _MOST_GROWTH)
            return
        if status == "missed" and drop is not None and self._trains:
            limit = _FALLS_FAST * self._drop if was_again else _WORTH_MORE * self.delta
            if drop <= limit:
                self.again, self._drop = name, drop
                return
        self.ratio = math.sqrt(self.ratio)
        # With nothing to show yet even a small step is worth it.
        self.converged = self.ratio < (self.least if self.best else min(self.least, _SMALLEST))

    def _next_ratio(self, drop: float, most: float) -> float:
        """Return the ratio of the step after one within delta: what is left of delta decides."""
        left = (self.delta - drop) / self.delta if self.delta > 0 else float(drop <= 0)
        power = _LEAST_GROWTH + (_MOST_GROWTH - _LEAST_GROWTH) * left
        power = min(max(power, _LEAST_GROWTH), most)
        return min(max(self.ratio**power, self.least), max(_LARGEST, self.ratio))
