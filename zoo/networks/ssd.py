"""A small single-shot detector."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import nn

from ...errors import UsageError
from .layers import ConvBNReLU6, init_he
from .mobilenet import MobileNetV2

STRIDES = (16, 32, 64, 128)
ASPECT_RATIOS = (1.0, 2.0, 0.5)
ANCHORS_PER_CELL = len(ASPECT_RATIOS) + 1
_BACKGROUND_LOGIT = 2.0
_SMALLEST_SCALE, _LARGEST_SCALE = 0.2, 0.9
# How many of MobileNetV2's layers come before the one that goes from stride 16 to 32.
_LAYERS_OF_STRIDE_16 = 14

Backbone = Literal["mobilenet_v2", "vgg"]
"""What the feature maps come from."""


class SSDLite(nn.Module):
    """SSD (Liu et al., 2016, arXiv:1512.02325) with the depthwise heads of SSDLite.

    SSDLite is section 6.2 of MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381), whose network
    is the backbone here; the other one has 3x3 convolutions only, as the VGG of the SSD paper, and
    is the faster one to train from scratch on small images. Boxes are predicted on four feature
    maps, of stride 16, 32, 64 and 128.

    Takes float32 images ``(batch, channels, height, width)``; returns class logits ``(batch,
    anchors, classes)`` and box offsets ``(batch, anchors, 4)``, in the order of
    :func:`iterate_anchors`. Class 0 is the background, and counts as one of the classes.

    Args:
        width: the width multiplier of the backbone, and of the further feature maps.
        backbone: what they come from.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        width: float = 0.5,
        backbone: Backbone = "mobilenet_v2",
    ) -> None:
        super().__init__()
        if backbone not in get_args(Backbone):
            raise UsageError(
                f"ssdlite: found the backbone {backbone!r}; expected one of"
                f" {', '.join(get_args(Backbone))}"
            )
        self.classes = classes
        if backbone == "mobilenet_v2":
            features = MobileNetV2(1, channels, width).features
            self.stride16 = features[:_LAYERS_OF_STRIDE_16]
            self.stride32 = features[_LAYERS_OF_STRIDE_16:]
        else:
            self.stride16, self.stride32 = _plain_backbone(channels, max(8, int(48 * width)))
        small, smallest = max(8, int(256 * width)), max(8, int(128 * width))
        counts = [_channels(self.stride16), _channels(self.stride32), small, smallest]
        self.stride64 = _halve(counts[1], small)
        self.stride128 = _halve(small, smallest)
        self.class_heads = nn.ModuleList(
            _head(count, ANCHORS_PER_CELL * classes) for count in counts
        )
        self.box_heads = nn.ModuleList(_head(count, ANCHORS_PER_CELL * 4) for count in counts)
        init_he(self)
        self._init_heads()

    def _init_heads(self) -> None:
        """Start from the background everywhere, and from the anchors themselves.

        As RetinaNet does (Lin et al., 2017, arXiv:1708.02002, section 4.1): with the many anchors
        of the background, large logits cost the first epochs.
        """
        for head in (*self.class_heads, *self.box_heads):
            nn.init.normal_(head[-1].weight, std=0.01)
            nn.init.zeros_(head[-1].bias)
        with torch.no_grad():
            for head in self.class_heads:
                head[-1].bias.view(ANCHORS_PER_CELL, self.classes)[:, 0] = _BACKGROUND_LOGIT

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.stride16(images)
        second = self.stride32(first)
        third = self.stride64(second)
        maps = [first, second, third, self.stride128(third)]
        logits: list[torch.Tensor] = []
        for index, head in enumerate(self.class_heads):
            x = head(maps[index]).permute(0, 2, 3, 1)
            logits.append(x.reshape(images.shape[0], -1, self.classes))
        boxes: list[torch.Tensor] = []
        for index, head in enumerate(self.box_heads):
            x = head(maps[index]).permute(0, 2, 3, 1)
            boxes.append(x.reshape(images.shape[0], -1, 4))
        return torch.cat(logits, 1), torch.cat(boxes, 1)


def _plain_backbone(channels: int, width: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the layers down to stride 16, and those from there to stride 32."""

    def conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return ConvBNReLU6(inputs, outputs, 3, stride)

    w = width
    stride16 = nn.Sequential(
        conv(channels, w, 2),
        conv(w, 2 * w, 2),
        conv(2 * w, 2 * w, 1),
        conv(2 * w, 4 * w, 2),
        conv(4 * w, 4 * w, 1),
        conv(4 * w, 6 * w, 2),
        conv(6 * w, 6 * w, 1),
    )
    return stride16, nn.Sequential(conv(6 * w, 8 * w, 2), conv(8 * w, 8 * w, 1))


def _channels(layers: nn.Sequential) -> int:
    """Return how many channels the last convolution of a backbone's part returns."""
    return [layer.out_channels for layer in layers.modules() if isinstance(layer, nn.Conv2d)][-1]


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        ConvBNReLU6(inputs, outputs // 2, 1),
        ConvBNReLU6(outputs // 2, outputs // 2, 3, 2, groups=outputs // 2),
        ConvBNReLU6(outputs // 2, outputs, 1),
    )


def _head(inputs: int, outputs: int) -> nn.Sequential:
    depthwise = ConvBNReLU6(inputs, inputs, 3, groups=inputs)
    return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1))


def iterate_anchors(height: int, width: int) -> Iterator[tuple[float, float, float, float]]:
    """Yield the anchors of an image (section 2.2 of the SSD paper), in the order of the outputs.

    Args:
        height: of the image, in pixels.
        width: likewise.

    Yields:
        center x, center y, width and height of each, as fractions of the image's width and height.
    """
    step = (_LARGEST_SCALE - _SMALLEST_SCALE) / (len(STRIDES) - 1)
    scales = [*(_SMALLEST_SCALE + index * step for index in range(len(STRIDES))), 1.0]
    for stride, (scale, next_scale) in zip(STRIDES, pairwise(scales), strict=True):
        shapes = [(scale * ratio**0.5, scale / ratio**0.5) for ratio in ASPECT_RATIOS]
        shapes.append(((scale * next_scale) ** 0.5,) * 2)
        rows, columns = -(-height // stride), -(-width // stride)
        for row in range(rows):
            for column in range(columns):
                for box_width, box_height in shapes:
                    yield (column + 0.5) / columns, (row + 0.5) / rows, box_width, box_height


def anchors(height: int, width: int) -> torch.Tensor:
    """Return :func:`iterate_anchors` as float32 ``(anchors, 4)``."""
    return torch.tensor(list(iterate_anchors(height, width)))


def decode(offsets: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Turn box offsets into boxes: the inverse of equation 2 of the SSD paper, with variances.

    Args:
        offsets: ``(batch, anchors, 4)``, as the network returns them.
        anchors: ``(anchors, 4)``, as :func:`anchors` returns them.

    Returns:
        left, top, right and bottom ``(batch, anchors, 4)``, as fractions of the image's size.
    """
    centers = anchors[:, :2] + 0.1 * offsets[..., :2] * anchors[:, 2:]
    half = anchors[:, 2:] * torch.exp(0.2 * offsets[..., 2:]) / 2
    return torch.cat([centers - half, centers + half], -1)


def ssdlite(
    classes: int,
    channels: int,
    image_size: int,
    *,
    width: float = 0.5,
    backbone: Backbone = "mobilenet_v2",
) -> SSDLite:
    """Build the detector, for images of any size; ``classes`` counts the background.

    Raises:
        UsageError: the backbone is unknown.
    """
    return SSDLite(classes, channels, width, backbone)
