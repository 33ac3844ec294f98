"""The metrics of models side by side, and their results of single samples as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..runtime.atomic import replacing


@dataclass(frozen=True)
class ModelMetrics:
    """What one model achieves.

    Attributes:
        model: what the user called it.
        path: its file; None for a spec given in Python.
        metrics: number by name.
        samples: how many samples were looked at.
        per_sample: one number a sample, by metric; empty when the evaluation gives none.
    """

    model: str
    path: Path | None
    metrics: Mapping[str, float]
    samples: int | None
    per_sample: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the path is absolute."""
        from ..training.evaluation import json_values

        return {
            "model": self.model,
            "path": None if self.path is None else str(self.path.absolute()),
            "metrics": json_values(dict(self.metrics)),
            "samples": self.samples,
        }


@dataclass(frozen=True)
class EvaluateResult:
    """The metrics of one or several models.

    Attributes:
        entries: in the order of the models.
        eval_key: the metric that counts.
        split: what was measured on; None for ``--data``.
    """

    entries: Sequence[ModelMetrics]
    eval_key: str | None
    split: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; ``metrics`` are those of the first model."""
        models = [entry.to_dict() for entry in self.entries]
        return {
            "metrics": models[0]["metrics"],
            "eval_key": self.eval_key,
            "split": self.split,
            "models": models,
        }


def write_per_sample(target: Path, entries: Sequence[ModelMetrics]) -> None:
    """Write the results of single samples to an ``.npz``, or nothing.

    Raises:
        UsageError: an evaluation gives none.
    """
    import numpy as np

    arrays = {}
    for entry in entries:
        if not entry.per_sample:
            raise UsageError(
                f"{entry.model}: its evaluation gives no results of single samples; expected a"
                " 'per_sample' array in what it returns"
            )
        for name, values in entry.per_sample.items():
            arrays[name if len(entries) == 1 else f"{entry.model}/{name}"] = values
    with replacing(target) as place, place.open("wb") as file:
        np.savez(file, **arrays)
