"""The residual networks for small images: ResNet-20, -32 and -56."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ...errors import UsageError
from .layers import init_he


class PadShortcut(nn.Module):
    """Option A of the paper: drop pixels, and append channels of zeros; no parameters."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, [0, 0, 0, 0, 0, self.extra])


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them (figure 2 of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(outputs)
        self.c2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.b2 = nn.BatchNorm2d(outputs)
        self.d: nn.Module
        if stride == 1 and inputs == outputs:
            self.d = nn.Identity()
        elif shortcut == "A":
            self.d = PadShortcut(outputs - inputs, stride)
        else:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.d = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.b1(self.c1(x)))
        y = self.b2(self.c2(y))
        return functional.relu(y + self.d(x))


class CifarResNet(nn.Module):
    """The networks of 6n+2 layers (He et al., 2015, arXiv:1512.03385, section 4.2).

    Takes float32 images ``(batch, channels, height, width)``; returns logits ``(batch, classes)``.

    Args:
        blocks: n, the blocks of each of the three stages.
        width: channels of the first stage; the others have two and four times as many.
        shortcut: where the size changes: ``B``, a projection, or ``A``, as in the paper's figures.
    """

    def __init__(
        self, classes: int, channels: int, blocks: int, width: int = 16, shortcut: str = "B"
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        layers = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(Block(inputs, outputs, stride, shortcut))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(inputs, classes)
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.stem(images)))
        return self.fc(self.layers(x).mean((2, 3)))


def resnet20(
    classes: int, channels: int, image_size: int, *, width: int = 16, shortcut: str = "B"
) -> CifarResNet:
    """Build ResNet-20, for images of any size (see :class:`CifarResNet`)."""
    return _build(20, classes, channels, width, shortcut)


def resnet32(
    classes: int, channels: int, image_size: int, *, width: int = 16, shortcut: str = "B"
) -> CifarResNet:
    """Build ResNet-32, for images of any size (see :class:`CifarResNet`)."""
    return _build(32, classes, channels, width, shortcut)


def resnet56(
    classes: int, channels: int, image_size: int, *, width: int = 16, shortcut: str = "B"
) -> CifarResNet:
    """Build ResNet-56, for images of any size (see :class:`CifarResNet`)."""
    return _build(56, classes, channels, width, shortcut)


def _build(depth: int, classes: int, channels: int, width: int, shortcut: str) -> CifarResNet:
    if shortcut not in ("A", "B"):
        raise UsageError(f"resnet{depth}: shortcut: found {shortcut!r}; expected 'A' or 'B'")
    return CifarResNet(classes, channels, (depth - 2) // 6, width, shortcut)
