"""U-Net."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import UsageError
from .layers import init_he


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015, arXiv:1505.04597), with padding and BatchNorm.

    The padding keeps the size, so that nothing has to be cropped. Height and width have to be
    multiples of ``2**depth``.

    Takes float32 images ``(batch, channels, height, width)``; returns logits of each pixel
    ``(batch, classes, height, width)``.

    Args:
        width: channels at full resolution; they double from level to level.
        depth: how often the resolution is halved.
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _double_conv(inputs, outputs)
            for inputs, outputs in zip([channels, *widths[:-2]], widths[:-1], strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = _double_conv(widths[-2], widths[-1])
        self.up = nn.ModuleList(Up(count) for count in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)
        init_he(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        skips: list[torch.Tensor] = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up in self.up:
            x = up(x, skips.pop())
        return self.head(x)


class Up(nn.Module):
    """Double the resolution, and add what was seen there on the way down."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.transposed = nn.ConvTranspose2d(2 * outputs, outputs, 2, 2)
        self.convs = _double_conv(2 * outputs, outputs)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.convs(torch.cat([skip, self.transposed(x)], 1))


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def unet(
    classes: int, channels: int, image_size: int, *, width: int = 64, depth: int | None = None
) -> UNet:
    """Build a U-Net; ``depth`` is by default 4, or less for a size that cannot be halved so often.

    Raises:
        UsageError: the size cannot be halved ``depth`` times.
    """
    most = (image_size & -image_size).bit_length() - 1
    if depth is None:
        depth = min(4, most)
    if not 1 <= depth <= most:
        raise UsageError(
            f"unet: found depth {depth} for images of {image_size} pixels, which can be halved"
            f" {most} times; expected 1 to {most}"
        )
    return UNet(classes, channels, width, depth)
