"""The trials of a quantization search: written, timed, evaluated, and put down in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ...errors import ModelError, TrainingError, UsageError
from ...frameworks.base import file_sha256
from ...training.evaluation import Evaluation
from ..budget import Budget
from ..journal import Journal, Record
from ..latency import Comparison
from ..paired_evaluation import Order, evaluate_beside
from ..phases import TimesPhases
from ..statistics import Array, Metric, is_within
from .plan import Plan, Precision
from .rules import Bits, LayerRules

if TYPE_CHECKING:
    from .layers import QuantLayer

TRIALS = "trials"
Target = Literal["size", "latency"]
Status = Literal["accepted", "missed", "rejected early", "slower", "larger", "failed"]


@dataclass(frozen=True)
class QuantizationSettings:
    """What the search is asked for.

    Attributes:
        target: ``size`` or ``latency``.
        delta: the permitted drop of the metric, in its own range.
        rules: what the user says of layers.
        format: that is measured, ``onnx`` or ``tflite``.
        calibration: samples that activations are calibrated on.
        epochs: of training after which a candidate is measured again; 0 trains none.
        reduce_range: weights of 7 bits where activations are quantized.
        eval_split: the split that is measured on.
        seed: of everything that is random.
        dry_run: walk through everything on two batches.
    """

    target: Target = "size"
    delta: float = 1.0
    rules: LayerRules = field(default_factory=LayerRules)
    format: str = "onnx"
    calibration: int = 256
    epochs: int = 0
    reduce_range: bool = False
    eval_split: str = "test"
    seed: int = 0
    dry_run: bool = False

    @property
    def bits(self) -> Bits:
        """Bits of weights that nothing else is said of."""
        return self.rules.bits

    @property
    def is_fast(self) -> bool:
        """Whether time is what counts."""
        return self.target == "latency"


@dataclass(frozen=True)
class QuantizationReference:
    """The model that was given, as a file, as candidates are compared with it.

    Attributes:
        path: the float file.
        size_bytes: of it.
        metric: the one that counts.
        value: of the metric, measured on the file.
        per_sample: its results of single samples, in the order of the split.
        order: a random order of the split, in which candidates are measured, so that they can be
            sent away early; None where that cannot be.
    """

    path: Path
    size_bytes: int
    metric: Metric
    value: float
    per_sample: Array | None = None
    order: Order | None = None


class Candidates(Protocol):
    """Writes candidates of one float model in one format."""

    @property
    def layers(self) -> tuple[QuantLayer, ...]:
        """The layers that can be quantized, in the order of the graph."""

    def noise(
        self, precisions: Mapping[str, Iterable[Precision]]
    ) -> dict[str, dict[Precision, float]]:
        """Return the noise of the output with one layer quantized, as a part of the signal."""

    def effective(self, plan: Plan) -> Plan:
        """Return what layers really get where a format, or its runtime, has no kernel."""

    def write(self, plan: Plan, path: Path) -> None:
        """Write a candidate."""

    def errors(self, plan: Plan) -> Mapping[str, float]:
        """Return the signal-to-noise ratio in dB of each layer's rounded weights, by layer."""


@dataclass(frozen=True)
class Trained:
    """What training did to a candidate.

    Attributes:
        epochs: that were trained.
        losses: the mean loss of each.
    """

    epochs: int
    losses: tuple[float, ...]


@dataclass
class Services(TimesPhases):
    """What the search needs from above.

    Attributes:
        opened: opens a file; gives a function that evaluates it on batches.
        compare: times a file beside another one, the reference by default.
        train: trains a candidate: its name, plan, the trial to go on from (empty for the
            reference), and where the file goes; None where nothing can be trained.
        loader: the whole evaluation split.
        report: gets a line for each thing that happens.
        phases: seconds by phase.
    """

    opened: Callable[[Path], AbstractContextManager[Callable[[Iterable[Any]], Evaluation]]]
    compare: Callable[[Path, Path | None], Comparison]
    train: Callable[[str, Plan, str, Path], Trained] | None
    loader: Iterable[Any]
    report: Callable[[str], None] = lambda line: None
    phases: dict[str, float] = field(default_factory=dict)


class Trials:
    """Makes trials, each of them once: what the journal has is not done again.

    Args:
        candidates: writes them.
        reference: what they are compared with.
        settings: of the search.
        journal: where they are written to.
        budget: how much may be done.
        services: what is needed from above.
    """

    def __init__(
        self,
        candidates: Candidates,
        reference: QuantizationReference,
        settings: QuantizationSettings,
        journal: Journal,
        budget: Budget,
        services: Services,
    ) -> None:
        self.candidates = candidates
        self.reference = reference
        self.settings = settings
        self.journal = journal
        self.budget = budget
        self.services = services
        self.folder = journal.folder / TRIALS
        self.folder.mkdir(exist_ok=True)
        self._count = 0

    def path(self, name: str) -> Path:
        """Return the file of a trial."""
        return self.folder / f"{name}.{self.settings.format}"

    def make(
        self, plan: Plan, *, limit: float | None = None, train: bool = False, parent: str = ""
    ) -> Record:
        """Write, time and evaluate a candidate.

        Args:
            plan: precisions by layer.
            limit: the largest drop that is of use; None is delta.
            train: train it first.
            parent: the trained trial whose weights it goes on with; empty for the reference's.

        Returns:
            its record. What failed is in no journal, and tried again when the search is resumed.

        Raises:
            StopSearch: the budget is spent, or somebody asked to end the search.
        """
        self._count += 1
        name = str(self._count)
        record = self.journal.find("trial", name)
        if record is not None and record["plan"] != told(plan):
            raise UsageError(
                f"{self.journal.folder}: trial {name} of its journal is another one than the search"
                " makes now",
                hint="--fresh starts over",
            )
        if record is not None:
            self.budget.spend(int(record["drop"] is not None), record["epochs"])
            return record
        start = time.monotonic()
        if any(int(found["name"]) > self._count for found in self._made()):
            # It failed, and the search went on from that.
            self.budget.spend(1)
            return self._record(name, plan, parent, "failed", start)
        self.budget.check(1)
        try:
            return self._make(name, plan, limit, train, parent, start)
        except TrainingError as error:
            self.services.report(f"trial {name}: {error.message}")
            self.budget.spend(1)
            return self._record(name, plan, parent, "failed", start, reason=error.message)

    def restored(self, trial: Record) -> Path:
        """Return the file of a trial that was measured; written again where it is another one.

        Raises:
            ModelError: it is gone, or was changed, and holds what training has found.
        """
        path = self.path(trial["name"])
        if not path.is_file() or file_sha256(path) != trial["sha256"]:
            if not trial["epochs"]:
                self.candidates.write(parse_plan(trial["plan"]), path)
            if not path.is_file() or file_sha256(path) != trial["sha256"]:
                raise ModelError(
                    f"{path}: the file of trial {trial['name']} is gone, or was changed",
                    hint="--fresh starts over",
                )
        return path

    def faster(self, name: str, path: Path, before: Path) -> bool:
        """Whether a file is measured to be faster than another one; measured once, then read.

        Args:
            name: of the comparison in the journal.
            path: the file.
            before: the other one.
        """
        record = self.journal.find("timed", name)
        if record is None:
            with self.services.timed("other"):
                times = self.services.compare(path, before)
            interval = list(times.interval)
            elapsed = self.budget.elapsed
            record = self.journal.append("timed", name, interval=interval, elapsed=elapsed)
        return bool(record["interval"][1] < 1.0)

    @property
    def last(self) -> Record | None:
        """The trial that ended last."""
        return self.journal.find("trial", str(self._count))

    def _made(self) -> Iterator[Record]:
        kinds = ("trial", "trained")
        return (record for record in self.journal.records if record["kind"] in kinds)

    def _make(
        self, name: str, plan: Plan, limit: float | None, train: bool, parent: str, start: float
    ) -> Record:
        path, services = self.path(name), self.services
        found: dict[str, Any] = {}
        if train:
            found = self._train(name, plan, parent, path)
            self.budget.spend(0, found["epochs"])
        else:  # also over what a search that was killed has left
            with services.timed("other"):
                self.candidates.write(plan, path)
        found["size_bytes"], found["sha256"] = path.stat().st_size, file_sha256(path)
        if self.settings.is_fast:
            with services.timed("other"):
                times = services.compare(path, None)
            found["latency_ms"], found["latency_ratio"] = times.candidate_ms, times.ratio
            if times.is_slower:
                return self._write(name, plan, parent, "slower", start, **found)
        elif found["size_bytes"] >= self.reference.size_bytes:
            return self._write(name, plan, parent, "larger", start, **found)
        with services.timed("evaluation"), services.opened(path) as evaluate:
            limit = self.settings.delta if limit is None else limit
            outcome = evaluate_beside(self.reference, evaluate, services.loader, limit)
        if not np.isfinite(outcome.drop):
            key = self.reference.metric.key
            raise TrainingError(f"the metric {key!r} is no number")
        self.budget.spend(1)
        found["drop"] = outcome.drop
        found["drop_interval"] = None if outcome.interval is None else list(outcome.interval)
        if outcome.is_early:
            reason = f"after {outcome.samples} samples, picked at random, it was certain to miss"
            found["drop_interval"] = None
            return self._write(name, plan, parent, "rejected early", start, reason=reason, **found)
        status: Status = "accepted" if is_within(outcome.drop, self.settings.delta) else "missed"
        return self._write(name, plan, parent, status, start, metrics=outcome.metrics, **found)

    def _train(self, name: str, plan: Plan, parent: str, path: Path) -> dict[str, Any]:
        trained = self.journal.find("trained", name)
        if trained is None or not path.exists():
            assert self.services.train is not None
            with self.services.timed("training"):
                done = self.services.train(name, plan, parent, path)
            trained = self.journal.append(
                "trained",
                name,
                epochs=done.epochs,
                losses=[value if np.isfinite(value) else None for value in done.losses],
                elapsed=self.budget.elapsed,
            )
        return {"epochs": trained["epochs"], "losses": trained["losses"]}

    def _write(
        self, name: str, plan: Plan, parent: str, status: Status, start: float, **found: Any
    ) -> Record:
        record = self._record(name, plan, parent, status, start, **found)
        values = {key: value for key, value in record.items() if key not in ("kind", "name")}
        record = self.journal.append("trial", name, **values)
        drop = "" if record["drop"] is None else f", drop {record['drop']:.4g}"
        bits = mean_bits(self.candidates.layers, plan)
        size = f"{record['size_bytes']:,} bytes, {bits:.3g} bits a weight"
        self.services.report(f"trial {name}: {size}{drop}: {status}")
        return record

    def _record(
        self, name: str, plan: Plan, parent: str, status: Status, start: float, **found: Any
    ) -> Record:
        return {
            "kind": "trial",
            "name": name,
            "parent": parent,
            "status": status,
            "plan": told(plan),
            "bits": round(mean_bits(self.candidates.layers, plan), 3),
            "size_bytes": found.get("size_bytes"),
            "sha256": found.get("sha256"),
            "latency_ms": found.get("latency_ms"),
            "latency_ratio": found.get("latency_ratio"),
            "metrics": found.get("metrics"),
            "drop": found.get("drop"),
            "drop_interval": found.get("drop_interval"),
            "epochs": found.get("epochs", 0),
            "losses": found.get("losses", []),
            "reason": found.get("reason"),
            "seconds": round(time.monotonic() - start, 2),
            "elapsed": round(self.budget.elapsed, 2),
        }


def told(plan: Plan) -> dict[str, str]:
    """Return precisions as the journal has them, ``w8a32``; see :func:`parse_plan`."""
    return {name: str(precision) for name, precision in plan.items()}


def mean_bits(layers: Iterable[QuantLayer], plan: Plan) -> float:
    """Return the mean bits of a weight, over the layers that can be quantized."""
    weights = [(layer.parameters, plan.get(layer.name, Precision(32)).weight) for layer in layers]
    total = sum(count for count, _ in weights)
    return sum(count * bits for count, bits in weights) / total if total else 32.0


def parse_plan(plan: Mapping[str, str]) -> dict[str, Precision]:
    """Read precisions, ``w8a32``, from the journal."""
    found = {}
    for name, text in plan.items():
        weight, _, activation = text.removeprefix("w").partition("a")
        found[name] = Precision(int(weight), int(activation))
    return found
