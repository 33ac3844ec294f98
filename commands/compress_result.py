"""How ``compress`` ends: candidates become files, are measured there, and a verdict is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.atomic import replacing
from .shipping import OPTIMIZED, OWN_FORMAT, REFERENCE, Shipping, onnx_of

if TYPE_CHECKING:
    import numpy as np

    from ..optimizers.budget import Forecast, StoppedBy
    from ..optimizers.journal import Journal, Record
    from ..optimizers.pruning.search import PruningSearch
    from ..optimizers.statistics import Drop
    from ..optimizers.verdict import ShippedFile, Verdict, Word
    from .compress_setup import Settled

BASELINE = "baseline.npz"
"""Results of single samples of the reference, as a network."""
MOST_SHIPPED = 3
"""Candidates that are exported and measured at the end, until one keeps its promise."""


@dataclass
class Ending:
    """What a verdict is made of.

    Attributes:
        search: which ended.
        shipping: writes and measures files.
        settled: the settled options.
        plan: what was forecast.
    """

    search: PruningSearch
    shipping: Shipping
    settled: Settled
    plan: Forecast

    @property
    def journal(self) -> Journal:
        """The journal of the search."""
        return self.search.journal

    def finish(self, stopped: StoppedBy) -> Verdict:
        """Ship the best candidate that keeps the promise as a file, and say how it went."""
        accepted = self._accepted()
        best: Record | None = None
        reason = ""
        for trial in accepted[:MOST_SHIPPED]:
            if self.search.budget.evaluations >= self.settled.max_evaluations:
                break
            shipped = self._ship(trial)
            fault = self._fault(shipped)
            if fault is None:
                best, reason = shipped, ""
                break
            reason = reason or fault
        word: Word = "met" if best is not None else "missed"
        if best is None:
            best, reason = self._best_effort(reason)
        return self._verdict(word, reason, stopped, best and self._present(best))

    def interrupted(self) -> Verdict:
        """Save the best candidate so far in Ingot's own format only: somebody waits."""
        accepted = self._accepted()
        folder = self.journal.folder
        reason = f"interrupted; --resume goes on from {folder}"
        if not accepted:
            return self._verdict("interrupted", reason, "signal", None)
        trial = accepted[0]
        network, recipe = self.search.load(trial["name"])
        path = self.shipping.save(OPTIMIZED, network, recipe)
        from ..optimizers.verdict import ShippedFile
        from .models import tree_sha256, tree_size

        size = tree_size(path) + tree_size(path.with_suffix(".safetensors"))
        found = {
            "measured": {
                "metrics": trial["metrics"],
                "size_bytes": size,
                "parameters": trial["parameters"],
                "macs": trial["macs"],
                "latency_ms": None,
            },
            "drop": trial["drop"],
            "drop_interval": trial["drop_interval"],
            "files": [ShippedFile(path, OWN_FORMAT, tree_sha256(path), size).to_dict()],
        }
        return self._verdict("interrupted", reason, "signal", found)

    def _accepted(self) -> list[Record]:
        """Return the trials within delta, the smallest, or fastest, first."""
        key = "latency_ms" if self.settled.settings.target == "latency" else "parameters"
        found = [trial for trial in self.search.trials() if trial["status"] == "accepted"]
        return sorted(found, key=lambda trial: (trial[key], trial["drop"], int(trial["name"])))

    def _ship(self, trial: Record) -> Record:
        """Export and measure a trial; what the journal says was measured is not measured again."""
        from ..optimizers.verdict import Measured
        from ..training.evaluation import json_values

        name, key = trial["name"], self.shipping.key
        services, budget = self.search.services, self.search.budget
        budget.spend(1)
        record = self.journal.find("shipped", name, result=key)
        if record is not None:
            return record
        network, recipe = self.search.load(name)
        with services.timed("export"):
            shipped = self.shipping.ship(OPTIMIZED, network, recipe)
        reference = self._reference()
        latency = self._latency(shipped.files, reference, network)
        drop = self._drop(shipped.evaluation, reference)
        measured = Measured(
            json_values(shipped.evaluation.metrics),
            shipped.files[0].size_bytes,
            trial["parameters"],
            trial["macs"],
            latency["candidate_ms"],
        )
        return self.journal.append(
            "shipped",
            name,
            result=key,
            measured=measured.to_dict(),
            files=[item.to_dict() for item in shipped.files],
            drop=drop.value,
            drop_interval=None if drop.interval is None else list(drop.interval),
            latency=latency,
            confirmed=self._confirm(shipped.files, reference),
            elapsed=budget.elapsed,
        )

    def _present(self, shipped: Record) -> Record:
        """Write the files of a candidate again where others, or none, are in their place."""
        if are_there(shipped_files(shipped["files"])):
            return shipped
        network, recipe = self.search.load(shipped["name"])
        with self.search.services.timed("export"):
            files = self.shipping.write(OPTIMIZED, network, recipe)
        found = [item.to_dict() for item in files]
        found[0]["metrics"] = shipped["measured"]["metrics"]
        return {**shipped, "files": found}

    def _reference(self) -> Record:
        record = self.journal.find("reference", result=self.shipping.key)
        assert record is not None, "it is shipped before the search"
        return record

    def _drop(self, evaluation: Any, reference: Record) -> Drop:
        from ..optimizers.statistics import Drop, paired_drop

        metric = self.search.reference.metric
        before = reference["measured"]["metrics"][metric.key]
        value = metric.drop(before, evaluation.value(metric.key))
        results = evaluation.per_sample.get(metric.key)
        paired = paired_drop(
            metric, read_results(self.journal.folder, shipped_results(self.shipping.key)), results
        )
        return Drop(value, None if paired is None else paired.interval)

    def _latency(
        self, files: Sequence[ShippedFile], reference: Record, network: Any
    ) -> dict[str, Any]:
        """Time the file that ships beside the reference; where neither is ONNX, drafts of both."""
        before = next(
            (Path(item["path"]) for item in reference["files"] if item["format"] == "onnx"), None
        )
        after = onnx_of(files)
        with self.search.services.timed("other"):
            if before is None or after is None:
                before = self.shipping.draft(REFERENCE, self.search.reference.network)
                after = self.shipping.draft(OPTIMIZED, network)
            found = self.shipping.compare(before, after)
            self.shipping.remove_drafts()
        return {
            "reference_ms": found.reference_ms,
            "candidate_ms": found.candidate_ms,
            "ratio": found.ratio,
            "interval": list(found.interval),
            "is_slower": found.is_slower,
        }

    def _confirm(self, files: Sequence[ShippedFile], reference: Record) -> dict[str, Any] | None:
        """Measure both files once more, on a split that no search saw."""
        from ..optimizers.statistics import paired_drop
        from ..training.evaluation import json_values

        split = self.settled.spec.evaluation.confirm_split
        if split is None:
            return None
        metric = self.search.reference.metric
        with self.search.services.timed("evaluation"):
            before = self.shipping.evaluate(Path(reference["files"][0]["path"]), split)
            after = self.shipping.evaluate(files[0].path, split)
        drop = metric.drop(before.value(metric.key), after.value(metric.key))
        paired = paired_drop(
            metric, before.per_sample.get(metric.key), after.per_sample.get(metric.key)
        )
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

        settings, key = self.settled.settings, self.search.reference.metric.key
        reference = self._reference()
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
        elif shipped["measured"]["size_bytes"] >= reference["measured"]["size_bytes"]:
            return "no candidate within delta was smaller than the reference"
        return None

    def _best_effort(self, reason: str) -> tuple[Record | None, str]:
        """Return the best that was found although it misses, and why it does."""
        delta = self.settled.settings.delta
        key = self.shipping.key
        tried = [
            record
            for record in self.journal.records
            if record["kind"] == "shipped" and record["result"] == key
        ]
        if tried:
            best = min(tried, key=_deciding_drop)
            return best, self._fault(best) or reason
        trials = [trial for trial in self.search.trials() if trial["drop"] is not None]
        # What was sent away early was measured in part only.
        measured = [trial for trial in trials if trial["status"] == "missed"] or trials
        if not measured:
            return None, reason or "no candidate could be measured"
        trial = min(measured, key=lambda record: float(record["drop"]))
        reason = f"the best candidate drops by {trial['drop']:.4g}; expected at most {delta:g}"
        return self._ship(trial), reason

    def _verdict(
        self, word: Word, reason: str, stopped: StoppedBy, best: Mapping[str, Any] | None
    ) -> Verdict:
        from ..optimizers.run_key import tool_versions
        from ..optimizers.verdict import Measured, Verdict

        search, settled = self.search, self.settled
        reference = self._reference()
        before = Measured.from_dict(reference["measured"])
        if word == "interrupted":  # the result is there in Ingot's own format only
            own = next(item for item in reference["files"] if item["format"] == OWN_FORMAT)
            before = Measured.from_dict({**reference["measured"], "size_bytes": own["size_bytes"]})
        if best is not None and best.get("latency") is not None:
            values = {**reference["measured"], "latency_ms": best["latency"]["reference_ms"]}
            before = Measured.from_dict(values)
        interval = None if best is None else best["drop_interval"]
        metric, budget = search.reference.metric, search.budget
        return Verdict(
            "compress",
            settled.spec.name,
            word,
            reason,
            stopped,
            settled.settings.target,
            metric.key,
            settled.settings.eval_split,
            metric.higher_is_better,
            settled.settings.delta,
            None if best is None else best["drop"],
            None if interval is None else (interval[0], interval[1]),
            before,
            None if best is None else Measured.from_dict(best["measured"]),
            budget.evaluations,
            budget.epochs,
            self.plan,
            budget.elapsed,
            self.journal.folder,
            settled.settings.seed,
            confirmed=None if best is None else best.get("confirmed"),
            phases=search.services.phases,
            artifacts=() if best is None else shipped_files(best["files"]),
            reference_artifacts=shipped_files(reference["files"]),
            versions=tool_versions(),
            warnings=_warnings(search, settled),
        )


def shipped_files(entries: Sequence[Mapping[str, Any]]) -> tuple[ShippedFile, ...]:
    from ..optimizers.verdict import ShippedFile

    return tuple(ShippedFile(**{**entry, "path": Path(entry["path"])}) for entry in entries)


def _deciding_drop(shipped: Record) -> float:
    confirmed = shipped["confirmed"]
    return float(shipped["drop"] if confirmed is None else confirmed["drop"])


def are_there(files: Sequence[ShippedFile]) -> bool:
    """Whether files are where they were written to, and as they were."""
    from .models import tree_sha256

    return all(file.path.exists() and tree_sha256(file.path) == file.sha256 for file in files)


def _warnings(search: PruningSearch, settled: Settled) -> tuple[str, ...]:
    found = []
    groups = search.journal.find("groups") or {}
    for name, reason in groups.get("excluded", {}).items():
        found.append(f"{name} stayed as it is: {reason}")
    if search.reference.metric.scale is None:
        found.append(
            "the evaluation gives no results of single samples: no interval of the drop, and no"
            " candidate was sent away early"
        )
    if settled.settings.dry_run:
        found.append("a dry run: two batches of each split; the figures mean nothing")
    return tuple(found)


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
