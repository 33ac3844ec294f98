"""What the journal of a search says, put together for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .numbers import finite

MEASURES = {"latency_ms": "latency (ms)", "size_bytes": "bytes", "parameters": "parameters"}
"""What a search makes smaller, and what charts call it."""
STATUSES = ("accepted", "missed", "rejected early", "slower", "larger", "failed")


def size_measure(command: Any) -> str:
    """Return what tells the size of a trial of a command: parameters, or bytes."""
    return "parameters" if command in ("compress", None) else "size_bytes"


@dataclass(frozen=True)
class Trial:
    """One candidate of a search; what was not measured is None.

    Attributes:
        name: in the journal.
        parent: the trial that it was made from; empty for the reference.
        status: one of :data:`STATUSES`, or another word.
        value: of the metric that counts.
        drop: by how much that is worse than the reference.
        interval: of the drop, 95%.
        parameters: how many numbers the model has learned.
        macs: multiply-accumulates of one sample.
        latency_ms: of one call.
        kept: channels left and channels before, by group.
        losses: of each epoch; None for one that is no number.
        seconds: that it took.
        reason: why it ended so.
        size_bytes: of its file, where the search is for that.
        bits: mean bits of a weight, of a quantization.
    """

    name: str
    parent: str
    status: str
    value: float | None
    drop: float | None
    interval: tuple[float, float] | None
    parameters: float | None
    macs: float | None
    latency_ms: float | None
    kept: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    losses: tuple[float | None, ...] = ()
    epochs: float | None = None
    seconds: float | None = None
    reason: str = ""
    size_bytes: float | None = None
    bits: float | None = None

    def cost(self, measure: str) -> float | None:
        """Return what the search makes smaller: one of :data:`MEASURES`."""
        found: float | None = getattr(self, measure)
        return found


@dataclass(frozen=True)
class Search:
    """A search, as far as it got.

    Attributes:
        run: its first record: model, target, delta, settings, versions; may be empty.
        reference: the model that was given; may be empty.
        key: the metric that counts.
        higher_is_better: whether a larger value of it is better.
        delta: the permitted drop.
        trials: in their order.
        groups: of layers whose channels may be removed: name and channels.
        verdict: how it ended; empty when it did not.
        shipped: the trial whose files were measured last; empty when none was.
    """

    run: Mapping[str, Any]
    reference: Mapping[str, Any]
    key: str
    higher_is_better: bool
    delta: float | None
    trials: tuple[Trial, ...]
    groups: Mapping[str, float | None]
    verdict: Mapping[str, Any]
    shipped: str

    @property
    def latency(self) -> bool:
        """Whether the search minimises time, not size."""
        return (self.run.get("target") or self.verdict.get("target")) == "latency"

    @property
    def measure(self) -> str:
        """What the search makes smaller: one of :data:`MEASURES`.

        Pruning counts parameters; quantization, which removes none, bytes.
        """
        if self.latency:
            return "latency_ms"
        return size_measure(self.run.get("command") or self.verdict.get("command"))

    @property
    def layers(self) -> Sequence[Mapping[str, Any]]:
        """The layers of a quantization, with their bits and errors; empty of another search."""
        return self.verdict.get("layers") or ()

    @property
    def measured(self) -> Mapping[str, Any]:
        """What was measured of the reference."""
        return self.verdict.get("reference") or self.reference.get("measured") or {}

    @property
    def reference_value(self) -> float | None:
        """The reference's value of the metric that counts."""
        return finite((self.measured.get("metrics") or {}).get(self.key))

    @property
    def reference_cost(self) -> float | None:
        """What the search makes smaller, of the reference."""
        return finite(self.measured.get(self.measure))

    @property
    def limit(self) -> float | None:
        """The value of the metric at the permitted drop."""
        value = self.reference_value
        if value is None or self.delta is None:
            return None
        return value - self.delta if self.higher_is_better else value + self.delta

    def best(self) -> Trial | None:
        """Return the trial that became the result, or would now: the smallest that was accepted."""
        if self.verdict:
            name = "parameters" if self.measure == "parameters" else "size_bytes"
            size = finite((self.verdict.get("optimized") or {}).get(name))
            same = [trial for trial in self.trials if size and trial.cost(name) == size]
            same.sort(key=lambda trial: (trial.name == self.shipped, trial.status == "accepted"))
            if same or not self.verdict.get("optimized"):
                return same[-1] if same else None
        found = [(trial.cost(self.measure), trial) for trial in self.trials]
        costs = [(c, t) for c, t in found if c is not None and t.status == "accepted"]
        return min(costs, key=lambda pair: pair[0])[1] if costs else None

    def channels_kept(self) -> list[tuple[str, float, float]]:
        """Return the groups of the result: name, channels that are left, channels before."""
        kept: dict[str, tuple[float, float]] = {}
        trial, named = self.best(), {trial.name: trial for trial in self.trials}
        seen: set[str] = set()
        while trial is not None and trial.name not in seen:  # a step may tell what it changed only
            seen.add(trial.name)
            kept = {**trial.kept, **kept}
            trial = named.get(trial.parent)
        if not kept:
            return []
        rest = {name: (n, n) for name, n in self.groups.items() if n and name not in kept}
        order = {name: place for place, name in enumerate(self.groups)}
        names = sorted({**kept, **rest}, key=lambda name: order.get(name, len(order)))
        return [(name, *{**rest, **kept}[name]) for name in names]


def read_search(
    records: Sequence[Mapping[str, Any]], verdict: Mapping[str, Any] | None = None
) -> Search:
    """Put the records of a journal together; any of them may be missing.

    Args:
        records: in their order; the last of a kind and name counts.
        verdict: the document; the journal's own by default.
    """
    last: dict[str, Mapping[str, Any]] = {}
    trials: dict[str, Mapping[str, Any]] = {}
    for record in records:
        last[str(record.get("kind"))] = record
        if record.get("kind") == "trial":
            trials[str(record.get("name"))] = record
    run, reference = last.get("run", {}), last.get("reference", {})
    ended = verdict or last.get("verdict", {}).get("document") or {}
    key = str(reference.get("eval_key") or ended.get("eval_key") or "")
    better = reference.get("higher_is_better", ended.get("higher_is_better", True)) is not False
    before = (reference.get("measured") or ended.get("reference") or {}).get("metrics") or {}
    base = finite(before.get(key))
    groups = {
        str(group.get("name")): finite(group.get("channels"))
        for group in last.get("groups", {}).get("groups") or ()
    }
    return Search(
        run,
        reference,
        key,
        better,
        finite(run.get("delta", ended.get("delta"))),
        tuple(_trial(record, key, base, better) for record in trials.values()),
        groups,
        ended,
        str(last.get("shipped", {}).get("name") or ""),
    )


def _trial(record: Mapping[str, Any], key: str, base: float | None, better: bool) -> Trial:
    value, drop = finite((record.get("metrics") or {}).get(key)), finite(record.get("drop"))
    if value is None and drop is not None and base is not None:
        value = base - drop if better else base + drop
    low, high = (*(record.get("drop_interval") or ()), None, None)[:2]
    ends = finite(low), finite(high)
    return Trial(
        str(record.get("name")),
        str(record.get("parent") or ""),
        str(record.get("status") or ""),
        value,
        drop,
        None if ends[0] is None or ends[1] is None else (ends[0], ends[1]),
        finite(record.get("parameters")),
        finite(record.get("macs")),
        finite(record.get("latency_ms")),
        _kept(record.get("kept")),
        tuple(finite(loss) for loss in record.get("losses") or ()),
        finite(record.get("epochs")),
        finite(record.get("seconds")),
        str(record.get("reason") or ""),
        finite(record.get("size_bytes")),
        finite(record.get("bits")),
    )


def _kept(entries: Any) -> dict[str, tuple[float, float]]:
    found = {}
    for name, entry in (entries or {}).items():
        kept, channels = finite(entry.get("kept")), finite(entry.get("channels"))
        if kept is not None and channels:
            found[str(name)] = (kept, channels)
    return found
