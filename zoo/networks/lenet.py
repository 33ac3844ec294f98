"""LeNet-5."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ...errors import UsageError

_SMALLEST = 16


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., 1998, Gradient-based learning applied to document recognition).

    As it is commonly trained today: ReLU for the scaled tanh, max pooling for the trainable
    subsampling, full connections between the convolutions, a linear output layer, and no padding:
    44,426 parameters for 28 pixels.

    Takes float32 images ``(batch, channels, image_size, image_size)``; returns logits
    ``(batch, classes)``.
    """

    def __init__(self, classes: int, channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        side = ((image_size - 4) // 2 - 4) // 2
        self.fc1 = nn.Linear(16 * side**2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.pool(functional.relu(self.conv1(images)))
        x = self.pool(functional.relu(self.conv2(x))).flatten(1)
        x = functional.relu(self.fc1(x))
        return self.fc3(functional.relu(self.fc2(x)))


def lenet5(classes: int, channels: int, image_size: int) -> LeNet5:
    """Build LeNet-5.

    Raises:
        UsageError: nothing would be left of such small images.
    """
    if image_size < _SMALLEST:
        raise UsageError(
            f"lenet5: found images of {image_size} pixels; expected {_SMALLEST} or more"
        )
    return LeNet5(classes, channels, image_size)
