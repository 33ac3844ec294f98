"""The table of a verdict: the model that was given, the one that was found, and what was gained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .numbers import (
    NONE,
    duration,
    finite,
    megabytes,
    metric,
    millions,
    milliseconds,
    operations,
    plain,
    signed,
    times,
)

HEADINGS = ("", "reference", "optimized", "enhancement")

_MEASURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("size_bytes", "model size", megabytes),
    ("macs", "complexity", operations),
    ("parameters", "parameters", millions),
    ("latency_ms", "execution time", milliseconds),
)

_HEADLINES = {
    "met": "within the permitted drop",
    "missed": "missed the permitted drop",
    "interrupted": "interrupted",
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: what was measured.
        reference: of the model that was given.
        optimized: of the best that was found.
        enhancement: how many times less; of a metric, the difference.
    """

    label: str
    reference: str
    optimized: str
    enhancement: str

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """All four, in the order of :data:`HEADINGS`."""
        return self.label, self.reference, self.optimized, self.enhancement


def comparison_rows(verdict: Mapping[str, Any]) -> list[Row]:
    """Return the metrics, the one that counts first, and then size, operations and time."""
    reference = verdict.get("reference") or {}
    optimized = verdict.get("optimized") or {}
    before, after = reference.get("metrics") or {}, optimized.get("metrics") or {}
    key = verdict.get("eval_key")
    names = sorted({*before, *after}, key=lambda name: (name != key, name))
    rows = [
        Row(name, metric(before.get(name)), metric(after.get(name)), _change(before, after, name))
        for name in names
    ]
    for measure, label, shown in _MEASURES:
        left, right = reference.get(measure), optimized.get(measure)
        if left is None and right is None:
            continue
        rows.append(Row(label, shown(left), shown(right), times(_ratio(left, right))))
    return rows


def headline(verdict: Mapping[str, Any]) -> str:
    """Return the verdict in one line: ``2.31x smaller, accuracy 0.40 lower (1 permitted)``."""
    word = str(verdict.get("verdict", ""))
    said = _HEADLINES.get(word, word)
    if not verdict.get("optimized"):
        return f"{said}: {verdict.get('reason') or 'no model was found'}"
    latency = verdict.get("target") == "latency"
    ratio = finite(verdict.get("latency_ratio" if latency else "size_ratio"))
    gained = "" if ratio is None else f"{times(ratio)} {'faster' if latency else 'smaller'}, "
    return f"{said}: {gained}{drop_text(verdict)}"


def drop_text(verdict: Mapping[str, Any]) -> str:
    """Return the drop, its interval, and what was permitted."""
    drop, interval = finite(verdict.get("drop")), verdict.get("drop_interval")
    key, delta = verdict.get("eval_key") or "the metric", plain(verdict.get("delta"))
    if drop is None:
        return f"{key} not measured ({delta} permitted)"
    between = ""
    if isinstance(interval, list | tuple) and len(interval) == 2:
        between = f"95%: {plain(interval[0])} to {plain(interval[1])}; "
    return f"drop of {key} {plain(drop)} ({between}{delta} permitted)"


def facts(verdict: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what else a verdict says of the search, as pairs of label and text."""
    forecast = verdict.get("forecast") or {}
    confirmed = verdict.get("confirmed") or {}
    most = forecast.get("max_evaluations")
    found = [
        ("target", str(verdict.get("target") or NONE)),
        ("metric", f"{verdict.get('eval_key')} on the split {verdict.get('eval_split')}"),
        ("drop", drop_text(verdict)),
        ("stopped by", str(verdict.get("stopped_by") or NONE)),
        ("evaluations", f"{verdict.get('evaluations', NONE)} (forecast: at most {most})"),
        ("epochs", plain(verdict.get("epochs"))),
        (
            "time",
            f"{duration(verdict.get('elapsed_seconds'))}"
            f" (forecast: about {duration(forecast.get('seconds'))})",
        ),
        ("seed", str(verdict.get("seed", NONE))),
    ]
    cpu = verdict.get("cpu") or {}
    if cpu:
        known = cpu.get("features")
        said = ", ".join(known) if known else "instruction sets unknown"
        found.append(("processor", f"{cpu.get('machine')}: {said}"))
    if confirmed:
        drop = plain(confirmed.get("drop"))
        found.insert(
            3, ("confirmed", f"drop of {drop} on the split {confirmed.get('split', NONE)}")
        )
    return found


def _ratio(before: Any, after: Any) -> float | None:
    left, right = finite(before), finite(after)
    return None if not left or not right else left / right


def _change(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> str:
    left, right = finite(before.get(name)), finite(after.get(name))
    return NONE if left is None or right is None else signed(right - left)
