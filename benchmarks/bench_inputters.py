"""The inputters of segmentation and detection, against the training steps that they feed.

The networks, sizes and augmentation are those of ``examples/segmentation`` and
``examples/detection``. Images are decoded anew in each epoch (no cache) by one thread, and a step
is forward pass, loss, backward pass and update on one thread: the inputter, which works beside the
training, must take less time a sample than the step. It uses one thread (``OMP_NUM_THREADS``), as
two that share busy cores are many times slower.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import Row, print_table, quotient, seconds_of, take_turns

from ingot.specs import load_spec
from ingot.training.problem import Problem

ROUNDS = int(os.environ.get("INGOT_BENCH_ROUNDS", "5"))
SAMPLES = 256
STEPS = 4
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def problem_of(name: str, folder: Path) -> Problem:
    """Draw the data of an example, and return the parts of its spec, without a cache."""
    draw = [sys.executable, EXAMPLES / name / "draw.py", folder, str(SAMPLES), "1"]
    subprocess.run(draw, check=True, stdout=subprocess.DEVNULL)
    suffix = "csv" if name == "segmentation" else "json"
    overrides = [
        f"data.kwargs.files={{train: {folder}/train.{suffix}}}",
        "data.kwargs.cache=false",
        "data.kwargs.threads=1",
    ]
    spec = load_spec(EXAMPLES / name / f"{name}.yaml", overrides, check_files=False)
    return Problem(spec)


def reading(problem: Problem) -> Callable[[], None]:
    """Return a function that reads all batches once."""
    inputter: Any = problem.splits["train"]

    def run() -> None:
        for _ in inputter.batches(0):
            pass

    return run


def training(problem: Problem) -> Callable[[], None]:
    """Return a function that makes some training steps on one batch."""
    network = problem.build_network().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    splits: Any = problem.splits["train"]
    batch = next(iter(splits.batches(0)))

    def run() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            found = problem.loss(network, batch)
            (sum(found.values()) if isinstance(found, dict) else found).backward()
            optimizer.step()

    return run


def main() -> None:
    rows: list[Row] = []
    for name in ("segmentation", "detection"):
        with tempfile.TemporaryDirectory() as folder:
            problem = problem_of(name, Path(folder))
            found = take_turns(
                {
                    "inputter": seconds_of(reading(problem)),
                    "network": seconds_of(training(problem)),
                },
                ROUNDS,
            )
        batch = problem.training.batch_size or 1
        inputter, network = found["inputter"] / SAMPLES, found["network"] / STEPS / batch
        rows.append(
            quotient(
                f"{name}: read, against training", 1e6 * inputter, 1e6 * network, "µs/image", 1
            )
        )
        print(f"{name}: {1 / inputter:,.0f} images/s read, {1 / network:,.0f} images/s trained")
    print_table(rows)
    print(f"alternative: the training step of PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
