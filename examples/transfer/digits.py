"""The embedded digits in two halves: 0 to 4 is a problem of its own, and 5 to 9 another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from ingot.zoo.digits import load_digits


def half(first: int, batch_size: int = 64, most: int | None = None) -> dict[str, Iterable[Any]]:
    """Return the splits of the five digits from ``first`` on, with labels 0 to 4.

    Args:
        first: 0 or 5.
        batch_size: samples a batch.
        most: how many training images are used; all when None.
    """
    found = {}
    for split in ("train", "test"):
        images, labels = load_digits(split)
        chosen = (labels >= first) & (labels < first + 5)
        tensors = [torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen] - first)]
        if split == "train" and most is not None:
            tensors = [tensor[:most] for tensor in tensors]
        found[split] = DataLoader(TensorDataset(*tensors), batch_size, shuffle=split == "train")
    return found
