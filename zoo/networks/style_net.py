"""A network that paints an image in the style that it was trained for."""

from __future__ import annotations

import torch
from torch import nn


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect")


class ConvNorm(nn.Sequential):
    """A convolution, instance normalisation, and ReLU where wanted."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            _convolution(inputs, outputs, kernel, stride),
            nn.InstanceNorm2d(outputs, affine=True),
        ]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))


class Residual(nn.Module):
    """Two convolutions, and their input added to what they return."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNorm(channels, channels, 3), ConvNorm(channels, channels, 3, relu=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class StyleNet(nn.Module):
    """The transformation network of Johnson et al. (2016, arXiv:1603.08155).

    As later networks have it, each image is normalised by itself (Ulyanov et al., 2016,
    arXiv:1607.08022), and grows by repeating pixels before a convolution, which leaves no
    checkerboard (Odena et al., 2016).

    Takes float32 images ``(batch, channels, height, width)``, values 0..1, and returns images of
    the same shape and range; height and width are 8 at least.

    Args:
        channels: of the images.
        width: channels of the first layer.
        blocks: residual blocks in the middle, at a quarter of the size.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            ConvNorm(channels, width, 9),
            ConvNorm(width, 2 * width, 3, 2),
            ConvNorm(2 * width, 4 * width, 3, 2),
        )
        self.blocks = nn.Sequential(*(Residual(4 * width) for _ in range(blocks)))
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"),
            ConvNorm(4 * width, 2 * width, 3),
            nn.Upsample(scale_factor=2, mode="nearest"),
            ConvNorm(2 * width, width, 3),
            _convolution(width, channels, 9),
            nn.Sigmoid(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        painted = self.decoder(self.blocks(self.encoder(images)))
        # Sizes that 4 does not divide have grown by up to 3 pixels.
        return painted[:, :, : images.shape[2], : images.shape[3]]


def style_net(channels: int = 3, *, width: int = 16, blocks: int = 3) -> StyleNet:
    """Build a :class:`StyleNet`, for images of any size; the paper has width 32 and 5 blocks."""
    return StyleNet(channels, width, blocks)
