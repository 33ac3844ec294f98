"""Where the time of a search goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class TimesPhases:
    """Adds up the time of phases.

    Attributes:
        phases: seconds by phase: ``training``, ``evaluation``, ``export``, ``other``.
    """

    phases: dict[str, float]

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time that something takes to a phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.phases[phase] = self.phases.get(phase, 0.0) + time.monotonic() - start
