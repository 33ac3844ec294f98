"""How a search ended: the document ``verdict.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .budget import Forecast, StoppedBy

Word = Literal["met", "missed", "interrupted"]

EXIT_CODES: Mapping[Word, int] = {"met": 0, "missed": 3, "interrupted": 130}


@dataclass(frozen=True)
class Measured:
    """A model, measured on the file that ships.

    Attributes:
        metrics: on the evaluation split, by name.
        size_bytes: of the file.
        parameters: how many numbers it has learned.
        macs: multiply-accumulates of one sample.
        latency_ms: median time of one call in ONNX Runtime; None when it was not measured.
    """

    metrics: Mapping[str, float]
    size_bytes: int
    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "metrics": dict(self.metrics),
            "size_bytes": self.size_bytes,
            "parameters": self.parameters,
            "macs": self.macs,
            "latency_ms": self.latency_ms,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measured:
        """Read what :meth:`to_dict` returned."""
        return cls(**values)


@dataclass(frozen=True)
class ShippedFile:
    """A file of the result.

    Attributes:
        path: where it is.
        format: as ``--format`` takes it.
        sha256: of the file; of a folder, that of its files' names and hashes.
        size_bytes: with the files that belong to it.
        metrics: what was measured on it, if it was.
    """

    path: Path
    format: str
    sha256: str
    size_bytes: int
    metrics: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the path is absolute."""
        return {
            "path": str(self.path.absolute()),
            "format": self.format,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "metrics": None if self.metrics is None else dict(self.metrics),
        }


@dataclass(frozen=True)
class Verdict:
    """How a search ended.

    Attributes:
        command: ``compress`` or ``quantize``.
        model: its name.
        verdict: the word.
        reason: one line; why it was missed or interrupted.
        stopped_by: what ended the search.
        target: what was minimised: ``size`` or ``latency``.
        eval_key: the metric that counts.
        eval_split: the split that it was measured on.
        higher_is_better: whether a larger value of it is better.
        delta: the permitted drop.
        drop: of the best model, measured on the file that ships; None when there is no model.
        drop_interval: of 95%; None where no results of single samples exist.
        confirmed: drop and interval on ``evaluation.confirm_split``, when the spec names one.
        reference: the model that was given.
        optimized: the best that was found; None when nothing was.
        evaluations: of models on the evaluation split.
        epochs: that were trained, over all steps.
        forecast: what was forecast.
        elapsed_seconds: over all parts of the search.
        phases: seconds by phase: ``training``, ``evaluation``, ``export``, ``other``.
        artifacts: the files of the result.
        reference_artifacts: those of the model that was given.
        run_dir: the run's folder.
        seed: of everything that is random.
        versions: of the tools.
        warnings: what the user should know.
        layers: of a quantization, each layer's name, bits and error.
        cpu: of a quantization, the machine and the instruction sets that it was evaluated on.
    """

    command: str
    model: str
    verdict: Word
    reason: str
    stopped_by: StoppedBy
    target: str
    eval_key: str
    eval_split: str
    higher_is_better: bool
    delta: float
    drop: float | None
    drop_interval: tuple[float, float] | None
    reference: Measured
    optimized: Measured | None
    evaluations: int
    epochs: float
    forecast: Forecast
    elapsed_seconds: float
    run_dir: Path
    seed: int
    confirmed: Mapping[str, Any] | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    artifacts: tuple[ShippedFile, ...] = ()
    reference_artifacts: tuple[ShippedFile, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    layers: tuple[Mapping[str, Any], ...] | None = None
    cpu: Mapping[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """0 met, 3 missed, 130 interrupted."""
        return EXIT_CODES[self.verdict]

    def ratio(self, name: str) -> float | None:
        """Return by how much a measure got smaller: ``size_bytes``, ``macs``, ``latency_ms``..."""
        if self.optimized is None:
            return None
        before, after = getattr(self.reference, name), getattr(self.optimized, name)
        return None if not before or not after else before / after

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute."""
        interval = None if self.drop_interval is None else list(self.drop_interval)
        document: dict[str, Any] = {
            "schema_version": 1,
            "command": self.command,
            "model": self.model,
            "verdict": self.verdict,
            "reason": self.reason,
            "stopped_by": self.stopped_by,
            "target": self.target,
            "eval_key": self.eval_key,
            "eval_split": self.eval_split,
            "higher_is_better": self.higher_is_better,
            "delta": self.delta,
            "drop": self.drop,
            "drop_interval": interval,
            "confirmed": None if self.confirmed is None else dict(self.confirmed),
            "reference": self.reference.to_dict(),
            "optimized": None if self.optimized is None else self.optimized.to_dict(),
            "size_ratio": self.ratio("size_bytes"),
            "parameters_ratio": self.ratio("parameters"),
            "macs_ratio": self.ratio("macs"),
            "latency_ratio": self.ratio("latency_ms"),
            "evaluations": self.evaluations,
            "epochs": self.epochs,
            "forecast": self.forecast.to_dict(),
            "elapsed_seconds": round(self.elapsed_seconds, 1),
            "phases": {name: round(value, 1) for name, value in self.phases.items()},
            "artifacts": [item.to_dict() for item in self.artifacts],
            "reference_artifacts": [item.to_dict() for item in self.reference_artifacts],
            "run_dir": str(self.run_dir.absolute()),
            "seed": self.seed,
            "versions": dict(self.versions),
            "warnings": list(self.warnings),
        }
        if self.layers is not None:
            document["layers"] = [dict(layer) for layer in self.layers]
        if self.cpu is not None:
            document["cpu"] = dict(self.cpu)
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Verdict:
        """Read what :meth:`to_dict` returned."""
        values = {
            name: value
            for name, value in document.items()
            if name != "schema_version" and not name.endswith("_ratio")
        }
        optimized, interval = values["optimized"], values["drop_interval"]
        values |= {
            "reference": Measured.from_dict(values["reference"]),
            "optimized": None if optimized is None else Measured.from_dict(optimized),
            "drop_interval": None if interval is None else (interval[0], interval[1]),
            "forecast": Forecast(**values["forecast"]),
            "run_dir": Path(values["run_dir"]),
            "warnings": tuple(values["warnings"]),
        }
        if values.get("layers") is not None:
            values["layers"] = tuple(values["layers"])
        for name in ("artifacts", "reference_artifacts"):
            values[name] = tuple(
                ShippedFile(**{**entry, "path": Path(entry["path"])}) for entry in values[name]
            )
        return cls(**values)
