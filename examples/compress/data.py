"""The digits that Ingot carries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from ingot.zoo.digits import load_digits


def splits(batch_size: int = 64) -> dict[str, Iterable[Any]]:
    """Return the splits ``train`` and ``test``, in batches of images and labels."""
    found = {}
    for split in ("train", "test"):
        images, labels = (torch.from_numpy(array) for array in load_digits(split))
        found[split] = DataLoader(TensorDataset(images, labels), batch_size, split == "train")
    return found
