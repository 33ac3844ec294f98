"""Sizes of the networks that do not depend on a framework."""

from __future__ import annotations

SMALL_IMAGE = 64
"""The largest image, in pixels, whose full resolution a network keeps in its first layers."""

# Expansion, channels, blocks and stride of each stage: table 2 of Sandler et al. (2018).
MOBILENET_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def is_small(image_size: int, small_images: bool | None) -> bool:
    """Return what the caller chose; without a choice, whether the images are small."""
    return image_size <= SMALL_IMAGE if small_images is None else small_images


def scaled_channels(channels: int, width: float) -> int:
    """Return the nearest multiple of 8, but no less than 9 tenths of what was asked for."""
    wanted = channels * width
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8
