"""Data and evaluation of the networks of ``bench_quantize.py``; the samples evaluated are counted.

It is copied beside each spec, with ``arrays.npz``. ``INGOT_BENCH_COUNT`` names the file that gets a
line with the number of samples of every call of the evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ingot.training.data import ArrayInputter

BATCH = 64


def loaders() -> dict[str, ArrayInputter]:
    """Return the samples to calibrate on, without labels, and those to evaluate on."""
    arrays = np.load(Path(__file__).with_name("arrays.npz"))
    calibration = arrays["calibration"]
    unlabelled = np.full(len(calibration), -1)
    return {
        "train": ArrayInputter((calibration, unlabelled), BATCH),
        "test": ArrayInputter((arrays["images"], arrays["labels"]), BATCH),
    }


def accuracy(model: Any, loader: Iterable[Any]) -> dict[str, Any]:
    """Return top-1 accuracy in percent, and whether each sample is right."""
    hits = np.concatenate([model(images).argmax(1) == labels for images, labels in loader])
    with Path(os.environ["INGOT_BENCH_COUNT"]).open("a") as file:
        file.write(f"{len(hits)}\n")
    return {"accuracy": 100 * float(hits.mean()), "per_sample": hits.astype(float)}
