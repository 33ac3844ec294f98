"""A small network whose width and dropout are hyper-parameters."""

from __future__ import annotations

from torch import nn


def build(width: int = 8, dropout: float = 0.0) -> nn.Module:
    """Return a network of images ``(batch, 1, 8, 8)``, for ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(32 * width, 10),
    )
