"""What ``export`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..exporters.parity import Parity


@dataclass(frozen=True)
class Artifact:
    """A file (or folder) that was delivered.

    Attributes:
        path: where it is.
        format: the format's name, as ``--format`` takes it.
        shape: ``dynamic_shape``, ``32x32`` or ``fixed``.
        precision: of its weights.
        size_bytes: with the files that belong to it.
        sha256: of the file; of a folder, that of its files' names and hashes.
        companions: files that belong to it.
        parity: how it differs from its source, and its latency.
        metrics: what the evaluation of the spec measured on it, or None.
        notes: what the user should know of it.
    """

    path: Path
    format: str
    shape: str
    precision: str
    size_bytes: int
    sha256: str
    companions: tuple[Path, ...]
    parity: Parity
    metrics: dict[str, float] | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute."""
        return {
            "path": str(self.path.absolute()),
            "format": self.format,
            "shape": self.shape,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "companions": [str(path.absolute()) for path in self.companions],
            "metrics": self.metrics,
            "difference": self.parity.to_dict(),
            "latency_ms": self.parity.latency_ms,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        name: the model's name.
        framework: of the source.
        artifacts: what was delivered, in the order of the formats asked for.
        folded: names of the BatchNorm modules of PyTorch code that were folded.
        reference_metrics: what the evaluation of the spec measured on the source, or None.
    """

    name: str
    framework: str
    artifacts: tuple[Artifact, ...]
    reference_metrics: dict[str, float] | None = None
    folded: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute."""
        return {
            "name": self.name,
            "framework": self.framework,
            "artifacts": [artifact.to_dict() for artifact in self.artifacts],
            "reference_metrics": self.reference_metrics,
            "folded": list(self.folded),
        }
