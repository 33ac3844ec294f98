"""VGG-11, -16 and -19 with BatchNorm, for small images."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import UsageError
from .layers import init_he

# The convolutions of each of the five stages: columns A, D and E of the paper's table 1.
_STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_SMALLEST = 32


class VGG(nn.Module):
    """VGG (Simonyan and Zisserman, 2014, arXiv:1409.1556) as it is common on CIFAR.

    With BatchNorm after each convolution, and one linear layer in place of three, after pooling
    over what is left of the image.

    Takes float32 images ``(batch, channels, height, width)`` of at least 32 pixels; returns logits
    ``(batch, classes)``.

    Args:
        depth: 11, 16 or 19.
        width: channels of the first stage (64 in the paper).
    """

    def __init__(self, classes: int, channels: int = 3, depth: int = 19, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage, count in enumerate(_STAGES[depth]):
            outputs = width * min(2**stage, 8)
            for _ in range(count):
                convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def vgg11(classes: int, channels: int, image_size: int, *, width: int = 64) -> VGG:
    """Build VGG-11 (see :class:`VGG`); UsageError for images of less than 32 pixels."""
    return _build(11, classes, channels, image_size, width)


def vgg16(classes: int, channels: int, image_size: int, *, width: int = 64) -> VGG:
    """Build VGG-16 (see :class:`VGG`); UsageError for images of less than 32 pixels."""
    return _build(16, classes, channels, image_size, width)


def vgg19(classes: int, channels: int, image_size: int, *, width: int = 64) -> VGG:
    """Build VGG-19 (see :class:`VGG`); UsageError for images of less than 32 pixels."""
    return _build(19, classes, channels, image_size, width)


def _build(depth: int, classes: int, channels: int, image_size: int, width: int) -> VGG:
    if image_size < _SMALLEST:
        raise UsageError(
            f"vgg{depth}: found images of {image_size} pixels; expected {_SMALLEST} or more"
        )
    return VGG(classes, channels, depth, width)
