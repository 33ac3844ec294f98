"""The embedded digits in two halves: 0 to 4 is a problem of its own, and 5 to 9 another one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, TensorDataset

from ingot.training import ImageInputter
from ingot.zoo.digits import load_digits


class Digits(DataLoader):
    """Digits, and how ``ingot infer --files`` prepares images of others.

    Attributes:
        class_names: of the labels from 0 on.
    """

    class_names: tuple[str, ...] = ()

    def for_files(self, files: Sequence[str]) -> ImageInputter:
        """Return an inputter of image files; 8 by 8 grey pixels, 0..1, as the digits are."""
        return ImageInputter.of_files(
            files,
            image_size=(8, 8),
            channels=1,
            class_names=self.class_names,
            convert=torch.from_numpy,
        )


def half(first: int, batch_size: int = 64, most: int | None = None) -> dict[str, Digits]:
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
        found[split] = Digits(TensorDataset(*tensors), batch_size, shuffle=split == "train")
        found[split].class_names = tuple(str(first + label) for label in range(5))
    return found
