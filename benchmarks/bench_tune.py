"""How many trials two processes of ``ingot tune`` finish, against one, in the same time.

Every trial costs as much as another: the parameters that are drawn change no work, and nothing is
pruned. The clock starts when every process has finished a trial, and so has imported what it needs.
A trial has one thread. The target is 1.6 times the trials, on a machine with two free cores; what
else runs there is measured, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from measure import Row, print_table

SECONDS = int(os.environ.get("INGOT_BENCH_SECONDS", "20"))
TARGET = 1.6
NETWORK = """\
from torch import nn


def build():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )
"""
SPEC = {
    "model": {"framework": "torch", "entrypoint": "net:build"},
    "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
    "task": "classification",
    "data": {"splits": "digits", "kwargs": {"batch_size": 64}},
    "full_trainer": {"optimizer": {"name": "SGD", "lr": 0.1}, "epochs": 8},
    "tune": {
        "trials": 100_000,
        "sampler": "random",
        "pruner": "none",
        "parameters": {"full_trainer.optimizer.lr": {"log_uniform": [1e-4, 0.1]}},
    },
}


def finished(folder: Path, processes: int) -> int:
    """Return how many trials some processes finish together in :data:`SECONDS`."""
    folder.mkdir()
    (folder / "net.py").write_text(NETWORK)
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    command = [sys.executable, "-u", "-m", "ingot.cli", "tune", "spec.yaml", "-o", "study"]
    logs = [folder / f"{number}.log" for number in range(processes)]
    started = []
    for log in logs:
        with log.open("w") as file:
            started.append(
                subprocess.Popen([*command, "--threads", "1"], cwd=folder, stdout=file, stderr=file)
            )

    def count() -> list[int]:
        if any(process.poll() is not None for process in started):
            raise SystemExit("\n".join(log.read_text() for log in logs))
        return [log.read_text().count("  complete  ") for log in logs]

    try:
        while not all(count()):
            time.sleep(0.05)
        before = sum(count())
        time.sleep(SECONDS)
        return sum(count()) - before
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait()


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        one = finished(Path(folder) / "one", 1)
        two = finished(Path(folder) / "two", 2)
    ratio = two / one
    print_table(
        [
            Row(
                f"tune: two processes against one, {SECONDS} s",
                f"{two} trials",
                f"{one} trials",
                f"{ratio:.2f}",
                f">= {TARGET:g}",
                ratio >= TARGET,
            )
        ]
    )


if __name__ == "__main__":
    main()
