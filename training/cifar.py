"""CIFAR-10 and CIFAR-100 in their binary form, from a local folder (nothing is downloaded)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .data import ArrayInputter, DataContext, Scaling, Splits
from .inputter import Array

_PIXELS = 3 * 32 * 32
_CIFAR10 = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR100 = {"train": ("train.bin",), "test": ("test.bin",)}


def cifar10_splits(
    context: DataContext,
    folder: str,
    batch_size: int = 128,
    scale: float = 1 / 255,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Splits:
    """CIFAR-10: images ``(batch, 3, 32, 32)`` and labels 0..9.

    Args:
        context: given by Ingot.
        folder: holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.
        batch_size: samples a batch.
        scale: factor of values 0..255; then ``mean`` is subtracted, and ``std`` divided by.
        mean: of each channel.
        std: of each channel.
    """
    scaling = Scaling(scale, tuple(mean), tuple(std))
    return _splits(context, folder, _CIFAR10, 0, 10, batch_size, scaling)


def cifar100_splits(
    context: DataContext,
    folder: str,
    batch_size: int = 128,
    scale: float = 1 / 255,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    coarse: bool = False,
) -> Splits:
    """CIFAR-100: images ``(batch, 3, 32, 32)`` and labels 0..99, or 0..19 when ``coarse``.

    Args:
        context: given by Ingot.
        folder: holds ``train.bin`` and ``test.bin``.
        batch_size: samples a batch.
        scale: as for CIFAR-10.
        mean: of each channel.
        std: of each channel.
        coarse: yield the 20 superclasses.
    """
    scaling = Scaling(scale, tuple(mean), tuple(std))
    classes = 20 if coarse else 100
    return _splits(context, folder, _CIFAR100, 0 if coarse else 1, classes, batch_size, scaling)


def _splits(
    context: DataContext,
    folder: str,
    files: Mapping[str, Sequence[str]],
    label: int,
    classes: int,
    batch_size: int,
    scaling: Scaling,
) -> Splits:
    labels = 1 if classes == 10 else 2
    found, place = {}, context.require(folder, "folder")
    for split, names in files.items():
        parts = [_read(place / name, labels) for name in names]
        rows = np.concatenate(parts)
        arrays = (rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, label].astype(np.int64))
        if int(arrays[1].max(initial=0)) >= classes:
            raise InputError(
                f"{place / names[0]}: found the label {int(arrays[1].max())};"
                f" expected 0..{classes - 1}"
            )
        found[split] = ArrayInputter(arrays, scaling=scaling, **context.options(split, batch_size))
    return found


def _read(path: Path, labels: int) -> Array:
    """Return the records of a file: ``labels`` bytes, then red, green and blue, row by row."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    size = labels + _PIXELS
    if not len(data) or len(data) % size:
        raise InputError(f"{path}: found {len(data)} bytes; expected records of {size}")
    return data.reshape(-1, size)
