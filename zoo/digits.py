"""The embedded data set: 1,797 images of handwritten digits, 8 by 8 pixels.

It is the test part of the UCI Optical Recognition of Handwritten Digits data set (E. Alpaydin and
C. Kaynak, 1998, CC BY 4.0), as scikit-learn carries it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TEST_SIZE = 360
_SPLIT_SEED = 0


def load_digits(split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the images and labels of a split.

    Args:
        split: ``train`` (1,437 images) or ``test`` (360 images), a fixed random partition.

    Returns:
        images, float32 ``(count, 1, 8, 8)`` with values 0..1, and labels, int64 ``(count,)``, 0..9.

    Raises:
        ValueError: there is no such split.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as archive:
        images = archive["images"].astype(np.float32)[:, None] / 16
        labels = archive["labels"].astype(np.int64)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    parts = {"train": order[TEST_SIZE:], "test": order[:TEST_SIZE]}
    if split not in parts:
        raise ValueError(f"split: found {split!r}; expected train or test")
    return images[parts[split]], labels[parts[split]]
