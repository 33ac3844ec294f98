"""What the benchmarks share: a table of ratios, and timing in which the contenders take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

HEADER = ("what", "ours", "alternative", "ratio", "target", "ok")


@dataclass(frozen=True)
class Row:
    """One comparison; all values as they are to be printed.

    Attributes:
        what: what was measured.
        ours: Ingot's figure, with its unit.
        alternative: the figure of what it is compared with, measured in the same run.
        ratio: the two as one figure: a quotient, or a difference with its unit.
        target: what ``ratio`` may be at most; "" when the row is only for information.
        ok: whether it is met; None when there is no target.
    """

    what: str
    ours: str
    alternative: str
    ratio: str
    target: str = ""
    ok: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Return what to print, a column each."""
        verdict = "" if self.ok is None else "yes" if self.ok else "NO"
        return (self.what, self.ours, self.alternative, self.ratio, self.target, verdict)


def quotient(
    what: str, ours: float, alternative: float, unit: str, target: float | None = None
) -> Row:
    """Return the row of ``ours / alternative``, with what the quotient may be at most."""
    ratio = ours / alternative
    limit, ok = ("", None) if target is None else (f"<= {target:g}", ratio <= target)
    return Row(what, f"{ours:.3g} {unit}", f"{alternative:.3g} {unit}", f"{ratio:.2f}", limit, ok)


def difference(
    what: str, ours: float, alternative: float, unit: str, target: float | None = None
) -> Row:
    """Return the row of ``ours - alternative``, with what the difference may be at most."""
    added = ours - alternative
    limit, ok = ("", None) if target is None else (f"<= {target:g} {unit}", added <= target)
    return Row(
        what, f"{ours:.1f} {unit}", f"{alternative:.1f} {unit}", f"{added:+.1f} {unit}", limit, ok
    )


def print_table(rows: list[Row]) -> None:
    """Print the rows below a header, in columns."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Measure every contender once a round, and return the median of each.

    Taking turns lets a slow spell of the machine hit all of them. One round before is not counted.

    Args:
        contenders: functions that return what they measured, by name.
        rounds: how often each one is measured.
    """
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        for name, measure in contenders.items():
            value = measure()
            if index:
                measured[name].append(value)
    return {name: median(values) for name, values in measured.items()}


def seconds_of(function: Callable[[], object]) -> Callable[[], float]:
    """Return a function that calls ``function`` once and returns the seconds that it took."""

    def measure() -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    return measure
