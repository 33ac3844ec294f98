"""Records of searches as a journal holds them, and a verdict, for the tests of what shows them."""

from __future__ import annotations

from typing import Any

MEASURED = {
    "metrics": {"accuracy": 98.0},
    "size_bytes": 80000,
    "parameters": 10000,
    "macs": 300000,
    "latency_ms": 2.5,
}
OPTIMIZED = {
    "metrics": {"accuracy": 97.4},
    "size_bytes": 50000,
    "parameters": 6000,
    "macs": 180000,
    "latency_ms": 2.0,
}
VERDICT: dict[str, Any] = {
    "schema_version": 1,
    "command": "compress",
    "verdict": "met",
    "reason": "",
    "stopped_by": "converged",
    "target": "size",
    "eval_key": "accuracy",
    "eval_split": "test",
    "higher_is_better": True,
    "delta": 1.0,
    "drop": 0.6,
    "drop_interval": [0.1, 1.1],
    "confirmed": None,
    "reference": MEASURED,
    "optimized": OPTIMIZED,
    "size_ratio": 1.6,
    "parameters_ratio": 1.67,
    "macs_ratio": 1.67,
    "latency_ratio": 1.25,
    "evaluations": 7,
    "epochs": 8,
    "forecast": {"max_evaluations": 20, "max_epochs": 32, "seconds": 60.0, "max_seconds": 600.0},
    "elapsed_seconds": 31.5,
    "phases": {"training": 20.0, "evaluation": 8.0},
    "artifacts": [
        {
            "path": "/runs/x/opt_model.onnx",
            "format": "onnx",
            "sha256": "0" * 64,
            "size_bytes": 50000,
            "metrics": {"accuracy": 97.4},
        }
    ],
    "reference_artifacts": [],
    "run_dir": "/runs/x",
    "seed": 0,
    "versions": {"python": "3.11", "torch": "2.9"},
    "warnings": [],
}


def run_records(
    model: str = "digits_cnn",
    target: str = "size",
    key: str = "accuracy",
    delta: float | None = 1.0,
    started: float = 1.7e9,
) -> list[dict[str, Any]]:
    """Return the first records of a search: run, reference, forecast."""
    run = {
        "kind": "run",
        "name": "",
        "format": 1,
        "key": "0123456789ab",
        "command": "compress",
        "model": model,
        "target": target,
        "delta": delta,
        "settings": {"level": 1, "exclude": []},
        "seed": 0,
        "versions": {"torch": "2.9"},
        "started": started,
    }
    reference = {
        "kind": "reference",
        "name": "",
        "measured": {**MEASURED, "metrics": {key: 98.0}},
        "eval_key": key,
        "higher_is_better": True,
        "samples": 360,
    }
    return [run, reference, {"kind": "forecast", "name": "", **VERDICT["forecast"]}]


def group_records(**channels: int) -> dict[str, Any]:
    """Return the record of the groups of layers."""
    groups = [{"name": name, "kind": "conv", "channels": n} for name, n in channels.items()]
    return {"kind": "groups", "name": "", "groups": groups, "excluded": {}, "skipped": {}}


def trial(
    name: str,
    parent: str,
    status: str,
    parameters: float | None,
    drop: float | None,
    kept: dict[str, tuple[int, int]],
    *,
    losses: list[float | None] | None = None,
    latency: float | None = None,
    reason: str | None = None,
    key: str = "accuracy",
) -> dict[str, Any]:
    """Return the record of a trial."""
    return {
        "kind": "trial",
        "name": name,
        "parent": parent,
        "status": status,
        "kept": {group: {"kept": n, "channels": most} for group, (n, most) in kept.items()},
        "parameters": parameters,
        "macs": None if parameters is None else parameters * 30,
        "latency_ms": latency,
        "metrics": None if drop is None else {key: 98.0 - drop},
        "drop": drop,
        "drop_interval": None if drop is None else [drop - 0.5, drop + 0.5],
        "epochs": 2,
        "losses": [0.9, 0.5] if losses is None else losses,
        "seconds": 12.3,
        "reason": reason,
        "elapsed": 12.3,
    }
