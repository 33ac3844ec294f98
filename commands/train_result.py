"""What a training run made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime.atomic import replacing

WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
MODEL = "model.keras"
RESULT = "train.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training run made.

    Attributes:
        name: the model's name.
        run_dir: holds weights, checkpoints and the result.
        weights: what ``model.weights`` may name; the best when training stopped early.
        metrics: of these weights on ``eval_split``; empty when there is no such split.
        eval_key: the metric that counts.
        best: its best value, and the epoch after which it was measured.
        epochs: epochs that were trained.
        steps: batches that were trained.
        stop_reason: why training stopped before its last epoch.
        elapsed_seconds: over all parts of the run.
        seed: of everything that was random.
        device: where it ran.
        history: loss and metrics of each evaluation.
        model: the network with these weights in one file (Keras).
        rank: number of this process among those that trained; the first one wrote the files.
    """

    name: str
    run_dir: Path
    weights: Path
    metrics: Mapping[str, float]
    eval_key: str | None
    best: Mapping[str, Any]
    epochs: int
    steps: int
    stop_reason: str | None
    elapsed_seconds: float
    seed: int
    device: str
    history: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    model: Path | None = None
    rank: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute, and what is no finite number is None."""
        from ..training.evaluation import json_values

        found: dict[str, Any] = json_values(
            {
                "name": self.name,
                "run_dir": str(self.run_dir.absolute()),
                "weights": str(self.weights.absolute()),
                "metrics": self.metrics,
                "eval_key": self.eval_key,
                "best": self.best,
                "epochs": self.epochs,
                "steps": self.steps,
                "stop_reason": self.stop_reason,
                "elapsed_seconds": self.elapsed_seconds,
                "seed": self.seed,
                "device": self.device,
                "history": self.history,
                **({} if self.model is None else {"model": str(self.model.absolute())}),
            }
        )
        return found

    def write(self) -> None:
        """Write ``train.json`` in the run's folder."""
        document = {"schema_version": 1, **self.to_dict()}
        with replacing(self.run_dir / RESULT) as file:
            file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
