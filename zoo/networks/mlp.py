"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class MLP(nn.Module):
    """Fully connected layers on the pixels (Rumelhart, Hinton and Williams, 1986, Nature 323).

    Takes float32 images ``(batch, channels, image_size, image_size)``; returns logits
    ``(batch, classes)``.
    """

    def __init__(self, classes: int, pixels: int, hidden: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        sizes = (pixels, *hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(sizes[-1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(images.flatten(1)))


def mlp(classes: int, channels: int, image_size: int, *, hidden: Sequence[int] = (256, 128)) -> MLP:
    """Build the perceptron; ``hidden`` gives the widths of its hidden layers."""
    return MLP(classes, channels * image_size**2, hidden)
