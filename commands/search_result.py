"""How every search ends: candidates that shipped are held against delta, and a verdict is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..runtime.atomic import replacing

if TYPE_CHECKING:
    import numpy as np

    from ..optimizers.budget import Budget, Forecast, StoppedBy
    from ..optimizers.journal import Journal, Record
    from ..optimizers.latency import Comparison
    from ..optimizers.statistics import Drop, Metric
    from ..optimizers.verdict import ShippedFile, Verdict, Word
    from ..specs import ModelSpec
    from ..training.evaluation import Evaluation

BASELINE = "baseline.npz"
"""Results of single samples of the reference, as what the search compares with."""
MOST_SHIPPED = 3
"""Candidates that are measured as files at the end, until one keeps its promise."""


class SearchEnding(ABC):
    """What a verdict is made of; subclasses say how a candidate becomes files.

    Args:
        journal: of the search.
        key: tells results that are written in other ways from each other.
        spec: of the model that was given.
        settings: of the search.
        metric: that counts.
        budget: what was spent.
        phases: seconds by phase.
        plan: what was forecast.
        max_evaluations: of models on the evaluation split.
    """

    command: ClassVar[str]

    def __init__(
        self,
        journal: Journal,
        key: str,
        spec: ModelSpec,
        settings: Any,
        metric: Metric,
        budget: Budget,
        phases: Mapping[str, float],
        plan: Forecast,
        max_evaluations: int,
    ) -> None:
        self.journal = journal
        self.key = key
        self.spec = spec
        self.settings = settings
        self.metric = metric
        self.budget = budget
        self.phases = phases
        self.plan = plan
        self.max_evaluations = max_evaluations

    @abstractmethod
    def ship(self, trial: Record) -> Record:
        """Write and measure the files of a trial; what was measured is not measured again."""

    @abstractmethod
    def present(self, shipped: Record) -> Record:
        """Write the files of a candidate again where others, or none, are in their place."""

    @abstractmethod
    def saved(self, trial: Record) -> Mapping[str, Any]:
        """Save a trial in the quickest way: somebody waits."""

    @abstractmethod
    def evaluate(self, path: Path, split: str) -> Evaluation:
        """Measure a file on a split."""

    @abstractmethod
    def by_size(self, trials: Sequence[Record]) -> list[Record]:
        """Return trials, the one that ``--target size`` asks for first."""

    def warnings(self) -> Sequence[str]:
        """Return what the user should know."""
        found = []
        if self.metric.scale is None:
            found.append(
                "the evaluation gives no results of single samples: no interval of the drop, and no"
                " candidate was sent away early"
            )
        if self.settings.dry_run:
            found.append("a dry run: two batches of each split; the figures mean nothing")
        return found

    def extra(self, best: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return more fields of the verdict."""
        return {}

    def finish(self, stopped: StoppedBy) -> Verdict:
        """Ship the best candidate that keeps the promise as a file, and say how it went."""
        best: Record | None = None
        reason = ""
        for trial in self._accepted()[:MOST_SHIPPED]:
            if self.budget.evaluations >= self.max_evaluations:
                break
            shipped = self.ship(trial)
            fault = self._fault(shipped)
            if fault is None:
                best, reason = shipped, ""
                break
            reason = reason or fault
        word: Word = "met" if best is not None else "missed"
        if best is None:
            best, reason = self._best_effort(reason)
        return self._verdict(word, reason, stopped, best and self.present(best))

    def interrupted(self) -> Verdict:
        """Save the best candidate so far, and say how to go on."""
        accepted = self._accepted()
        reason = f"interrupted; --resume goes on from {self.journal.folder}"
        found = self.saved(accepted[0]) if accepted else None
        return self._verdict("interrupted", reason, "signal", found)

    def trials(self) -> list[Record]:
        """Return all trials that ended, in their order."""
        return [record for record in self.journal.records if record["kind"] == "trial"]

    def _accepted(self) -> list[Record]:
        """Return the trials within delta, the smallest, or fastest, first."""
        found = [trial for trial in self.trials() if trial["status"] == "accepted"]
        if self.settings.target == "latency":
            # Milliseconds of two moments do not compare; ratios to one reference do.
            return sorted(
                found,
                key=lambda it: (
                    it.get("latency_ratio") or it["latency_ms"],
                    it["drop"],
                    int(it["name"]),
                ),
            )
        return self.by_size(found)

    def reference(self) -> Record:
        """Return what was measured of the reference's files."""
        record = self.journal.find("reference", result=self.key)
        assert record is not None, "it is shipped before the search"
        return record

    def drop(self, evaluation: Evaluation) -> Drop:
        """Return the drop of a file from that of the reference."""
        from ..optimizers.statistics import Drop, paired_drop

        before = self.reference()["measured"]["metrics"][self.metric.key]
        value = self.metric.drop(before, evaluation.value(self.metric.key))
        results = evaluation.per_sample.get(self.metric.key)
        kept = read_results(self.journal.folder, shipped_results(self.key))
        paired = paired_drop(self.metric, kept, results)
        return Drop(value, None if paired is None else paired.interval)

    def confirm(self, path: Path) -> dict[str, Any] | None:
        """Measure reference and candidate once more, on a split that no search saw."""
        from ..optimizers.statistics import paired_drop
        from ..training.evaluation import json_values

        split = self.spec.evaluation.confirm_split
        if split is None:
            return None
        key = self.metric.key
        before = self.evaluate(Path(self.reference()["files"][0]["path"]), split)
        after = self.evaluate(path, split)
        drop = self.metric.drop(before.value(key), after.value(key))
        paired = paired_drop(self.metric, before.per_sample.get(key), after.per_sample.get(key))
        interval = None if paired is None or paired.interval is None else list(paired.interval)
        return {
            "split": split,
            "reference": json_values(before.metrics),
            "optimized": json_values(after.metrics),
            "drop": drop,
            "drop_interval": interval,
        }

    def _fault(self, shipped: Record) -> str | None:
        """Return why a file does not keep the promise; None when it does."""
        from ..optimizers.statistics import is_within

        settings, key = self.settings, self.metric.key
        confirmed = shipped["confirmed"]
        if confirmed is not None and not is_within(confirmed["drop"], settings.delta):
            return (
                f"{key} drops by {confirmed['drop']:.4g} on the split {confirmed['split']!r}, which"
                f" the search never saw; expected at most {settings.delta:g}"
            )
        if confirmed is None and not is_within(shipped["drop"], settings.delta):
            return (
                f"{key} of the file drops by {shipped['drop']:.4g}; expected at most"
                f" {settings.delta:g}"
            )
        if settings.target == "latency":
            if shipped["latency"]["interval"][1] >= 1.0:
                return "no candidate within delta was faster than the reference"
        elif shipped["measured"]["size_bytes"] >= self.reference()["measured"]["size_bytes"]:
            return "no candidate within delta was smaller than the reference"
        return None

    def _best_effort(self, reason: str) -> tuple[Record | None, str]:
        """Return the best that was found although it misses, and why it does."""
        tried = [
            record
            for record in self.journal.records
            if record["kind"] == "shipped" and record["result"] == self.key
        ]
        if tried:
            best = min(tried, key=_deciding_drop)
            return best, self._fault(best) or reason
        trials = [trial for trial in self.trials() if trial["drop"] is not None]
        # What was sent away early was measured in part only.
        measured = [trial for trial in trials if trial["status"] == "missed"] or trials
        if not measured:
            return None, reason or self.nothing()
        trial = min(measured, key=lambda record: float(record["drop"]))
        delta = self.settings.delta
        reason = f"the best candidate drops by {trial['drop']:.4g}; expected at most {delta:g}"
        return self.ship(trial), reason

    def nothing(self) -> str:
        """Return why there is no candidate at all."""
        return "no candidate could be measured"

    def _verdict(
        self, word: Word, reason: str, stopped: StoppedBy, best: Mapping[str, Any] | None
    ) -> Verdict:
        from ..optimizers.run_key import tool_versions
        from ..optimizers.verdict import Measured, Verdict

        reference = self.reference()
        before = Measured.from_dict(reference["measured"])
        if best is not None and word == "interrupted":
            # The result is there in one format only, which need not be the first one.
            format_ = best["files"][0]["format"]
            same = next((item for item in reference["files"] if item["format"] == format_), None)
            if same is not None:
                values = {**reference["measured"], "size_bytes": same["size_bytes"]}
                before = Measured.from_dict(values)
        if best is not None and best.get("latency") is not None:
            values = {**reference["measured"], "latency_ms": best["latency"]["reference_ms"]}
            before = Measured.from_dict(values)
        interval = None if best is None else best["drop_interval"]
        settings, budget = self.settings, self.budget
        return Verdict(
            self.command,
            self.spec.name,
            word,
            reason,
            stopped,
            settings.target,
            self.metric.key,
            settings.eval_split,
            self.metric.higher_is_better,
            settings.delta,
            None if best is None else best["drop"],
            None if interval is None else (interval[0], interval[1]),
            before,
            None if best is None else Measured.from_dict(best["measured"]),
            budget.evaluations,
            budget.epochs,
            self.plan,
            budget.elapsed,
            self.journal.folder,
            settings.seed,
            confirmed=None if best is None else best.get("confirmed"),
            phases=self.phases,
            artifacts=() if best is None else shipped_files(best["files"]),
            reference_artifacts=shipped_files(reference["files"]),
            versions=tool_versions(),
            warnings=tuple(self.warnings()),
            **self.extra(best),
        )


def comparison_values(found: Comparison) -> dict[str, Any]:
    """Return a comparison of times for the journal."""
    return {
        "reference_ms": found.reference_ms,
        "candidate_ms": found.candidate_ms,
        "ratio": found.ratio,
        "interval": list(found.interval),
        "is_slower": found.is_slower,
    }


def shipped_files(entries: Sequence[Mapping[str, Any]]) -> tuple[ShippedFile, ...]:
    """Read files from the journal."""
    from ..optimizers.verdict import ShippedFile

    return tuple(ShippedFile(**{**entry, "path": Path(entry["path"])}) for entry in entries)


def _deciding_drop(shipped: Record) -> float:
    confirmed = shipped["confirmed"]
    return float(shipped["drop"] if confirmed is None else confirmed["drop"])


def are_there(files: Sequence[ShippedFile]) -> bool:
    """Whether files are where they were written to, and as they were."""
    from .models import tree_sha256

    return all(file.path.exists() and tree_sha256(file.path) == file.sha256 for file in files)


def shipped_results(key: str) -> str:
    """Return the file for results of single samples of the reference, as the file that ships."""
    return f"reference-{key}.npz"


def save_results(folder: Path, name: str, results: np.ndarray[Any, Any] | None) -> None:
    """Keep the reference's results of single samples, which drops are paired with."""
    if results is None:
        return
    import numpy as np

    with replacing(folder / name, sync=True) as part, part.open("wb") as file:
        np.savez(file, results=results)


def read_results(folder: Path, name: str) -> np.ndarray[Any, Any] | None:
    """Return what was kept, if anything was."""
    path = folder / name
    if not path.exists():
        return None
    from ..runtime.npz import read_npz

    found: np.ndarray[Any, Any] = read_npz(path, str(path))["results"]
    return found
