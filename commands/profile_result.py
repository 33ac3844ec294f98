"""The profiles of a model and of another one, compared, and as a table of layers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..runtime.atomic import replacing

if TYPE_CHECKING:
    from ..training.profile import Profile

RATIOS = ("size_bytes", "macs", "parameters", "memory_bytes", "latency_ms")
"""What a comparison gives as a ratio, the first model's value by the other's."""


@dataclass(frozen=True)
class ProfiledModel:
    """One model's profile.

    Attributes:
        label: what the user called it.
        path: its file; None for a spec given in Python.
        framework: what runs it.
        metrics: number by name; empty when there is no data, or no evaluation.
        profile: what was counted and timed.
        threads: threads of one operator.
        batch_size: of the call that was timed.
    """

    label: str
    path: Path | None
    framework: str
    metrics: Mapping[str, float]
    profile: Profile
    threads: int
    batch_size: int

    def value(self, key: str) -> float | None:
        """Return one of :data:`RATIOS`; None when it cannot be told."""
        if key == "latency_ms":
            return self.profile.latency.median_ms
        found: float | None = getattr(self.profile.complexity, key)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: first the keys that a verdict has of its reference."""
        from ..training.evaluation import json_values

        complexity, latency = self.profile.complexity, self.profile.latency
        return {
            "metrics": json_values(dict(self.metrics)),
            "size_bytes": complexity.size_bytes,
            "parameters": complexity.parameters,
            "macs": complexity.macs,
            "latency_ms": latency.median_ms,
            "matrix_macs": complexity.matrix_macs,
            "memory_bytes": complexity.memory_bytes,
            "file_bytes": complexity.file_bytes,
            "latency": asdict(latency),
            "threads": self.threads,
            "batch_size": self.batch_size,
            "device": self.profile.device,
            "model": self.label,
            "path": None if self.path is None else str(self.path.absolute()),
            "framework": self.framework,
            "layers": [self._layer(layer) for layer in complexity.layers],
            "notes": list(complexity.notes),
        }

    def _layer(self, layer: Any) -> dict[str, Any]:
        shape = None if layer.output_shape is None else list(layer.output_shape)
        return {
            "name": layer.name,
            "type": layer.kind,
            "output_shape": shape,
            "parameters": layer.parameters,
            "size_bytes": layer.size_bytes,
            "macs": layer.macs,
            "matrix_macs": layer.matrix_macs,
            "share": self.share(layer.macs),
        }

    def share(self, macs: int) -> float:
        """Return the part of a layer's operations in all, 0 to 1."""
        return macs / (self.profile.complexity.macs or macs or 1)


@dataclass(frozen=True)
class ProfileResult:
    """The profile of a model, and of another one that it is compared with.

    Attributes:
        model: the model.
        other: the other one, or None.
        csv: the file of layers that was written, or None.
    """

    model: ProfiledModel
    other: ProfiledModel | None
    csv: Path | None

    @property
    def enhancements(self) -> dict[str, float | None]:
        """The model's value by the other's, by key; None when one of them cannot be told."""
        if self.other is None:
            return {}
        pairs = {key: (self.model.value(key), self.other.value(key)) for key in RATIOS}
        return {key: one / two if one and two else None for key, (one, two) in pairs.items()}

    @property
    def differences(self) -> dict[str, float]:
        """The other's metrics less the model's, by name."""
        ours, theirs = self.model.metrics, {} if self.other is None else self.other.metrics
        return {name: theirs[name] - ours[name] for name in ours if name in theirs}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        from ..training.evaluation import json_values

        compare = None
        if self.other is not None:
            enhancements = json_values({"metrics": self.differences, **self.enhancements})
            compare = {**self.other.to_dict(), "enhancements": enhancements}
        written = None if self.csv is None else str(self.csv.absolute())
        return {**self.model.to_dict(), "compare": compare, "csv": written}


def write_layers(target: Path, found: Sequence[ProfiledModel]) -> None:
    """Write the layers of models to a CSV, or nothing.

    Raises:
        UsageError: there are none.
    """
    rows = [
        {"model": model.label, **layer} for model in found for layer in model.to_dict()["layers"]
    ]
    if not rows:
        raise UsageError(
            f"{found[0].label}: its layers cannot be told ({found[0].framework}); nothing is"
            " written to --csv"
        )
    with replacing(target) as place, place.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shape = row["output_shape"]
            text = "" if shape is None else "x".join(map(str, shape))
            writer.writerow({**row, "output_shape": text, "share": f"{row['share']:.6f}"})
