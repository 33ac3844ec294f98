"""MobileNet, versions 1 and 2."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .layers import ConvBNReLU6, init_he
from .sizes import MOBILENET_V2_STAGES, is_small, scaled_channels

# Channels and stride of each depthwise separable convolution: table 1 of the paper.
_V1_LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """MobileNet (Howard et al., 2017, arXiv:1704.04861).

    Takes float32 images ``(batch, channels, height, width)``; returns logits ``(batch, classes)``.

    Args:
        width: the paper's width multiplier.
        small_images: the first convolution keeps the resolution.
    """

    def __init__(
        self, classes: int, channels: int = 3, width: float = 1.0, small_images: bool = False
    ) -> None:
        super().__init__()
        inputs = scaled_channels(32, width)
        layers: list[nn.Module] = [_ConvBNReLU(channels, inputs, 3, 1 if small_images else 2)]
        for count, stride in _V1_LAYERS:
            outputs = scaled_channels(count, width)
            layers.append(_ConvBNReLU(inputs, inputs, 3, stride, groups=inputs))
            layers.append(_ConvBNReLU(inputs, outputs, 1))
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


class _ConvBNReLU(nn.Sequential):
    """A convolution that keeps the size (before its stride), BatchNorm, and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x)
        return functional.relu(x)


class InvertedResidual(nn.Module):
    """The block of MobileNetV2: expand, filter each channel, project; a shortcut around it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [ConvBNReLU6(inputs, hidden, 1)]
        layers.append(ConvBNReLU6(hidden, hidden, 3, stride, groups=hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381).

    Tensors are named as in torchvision, so that its weight files can be loaded.

    Takes float32 images ``(batch, channels, height, width)``; returns logits ``(batch, classes)``.

    Args:
        width: the paper's width multiplier; the last convolution keeps at least 1280 channels.
        small_images: the first convolution and the second stage keep the resolution.
    """

    def __init__(
        self, classes: int, channels: int = 3, width: float = 1.0, small_images: bool = False
    ) -> None:
        super().__init__()
        inputs = scaled_channels(32, width)
        layers: list[nn.Module] = [ConvBNReLU6(channels, inputs, 3, 1 if small_images else 2)]
        for stage, (expansion, count, blocks, stride) in enumerate(MOBILENET_V2_STAGES):
            outputs = scaled_channels(count, width)
            for index in range(blocks):
                keep = index > 0 or (small_images and stage == 1)
                layers.append(InvertedResidual(inputs, outputs, 1 if keep else stride, expansion))
                inputs = outputs
        last = scaled_channels(1280, max(1.0, width))
        layers.append(ConvBNReLU6(inputs, last, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def mobilenet_v1(
    classes: int,
    channels: int,
    image_size: int,
    *,
    width: float = 1.0,
    small_images: bool | None = None,
) -> MobileNetV1:
    """Build MobileNetV1; ``small_images`` is by default true up to 64 pixels."""
    return MobileNetV1(classes, channels, width, is_small(image_size, small_images))


def mobilenet_v2(
    classes: int,
    channels: int,
    image_size: int,
    *,
    width: float = 1.0,
    small_images: bool | None = None,
) -> MobileNetV2:
    """Build MobileNetV2; ``small_images`` is by default true up to 64 pixels."""
    return MobileNetV2(classes, channels, width, is_small(image_size, small_images))
