"""A small classifier of textures; its layers compare images for style transfer."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def build(classes: int = 6) -> nn.Module:
    """Return a network of images ``(batch, 3, height, width)``, in the manner of VGG."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for stage, width in enumerate((16, 32, 48), start=1):
        for place in (1, 2):
            layers[f"conv{stage}_{place}"] = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            layers[f"norm{stage}_{place}"] = nn.BatchNorm2d(width)
            layers[f"relu{stage}_{place}"] = nn.ReLU()
            inputs = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flat"] = nn.Flatten()
    layers["head"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)
