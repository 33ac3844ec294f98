"""ResNet-18."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .layers import init_he
from .sizes import is_small


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them, projected where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2015, arXiv:1512.03385, table 1).

    Tensors are named as in torchvision, so that its weight files can be loaded.

    Takes float32 images ``(batch, channels, height, width)``; returns logits ``(batch, classes)``.

    Args:
        width: channels of the first stage; they double from stage to stage.
        small_images: start with one 3x3 convolution in place of a 7x7 of stride 2 and a pool.
    """

    def __init__(
        self, classes: int, channels: int = 3, width: int = 64, small_images: bool = False
    ) -> None:
        super().__init__()
        if small_images:
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.fc = nn.Linear(8 * width, classes)
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))


def resnet18(
    classes: int,
    channels: int,
    image_size: int,
    *,
    width: int = 64,
    small_images: bool | None = None,
) -> ResNet18:
    """Build ResNet-18; ``small_images`` is by default true up to 64 pixels."""
    return ResNet18(classes, channels, width, is_small(image_size, small_images))
