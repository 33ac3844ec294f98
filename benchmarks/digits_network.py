"""A small network of every kind of layer: depthwise, squeeze-excite, concatenation."""

import torch
from torch import nn


def conv(i, o, k=3, groups=1):
    return nn.Sequential(
        nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU()
    )


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.down = nn.Conv2d(width, width // 4, 1)
        self.up = nn.Conv2d(width // 4, width, 1)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.stem = conv(1, width)
        self.depthwise = conv(width, width, groups=width)
        self.point = conv(width, 2 * width, 1)
        self.excite = SqueezeExcite(2 * width)
        self.left = conv(2 * width, width, 1)
        self.right = conv(2 * width, width)
        self.last = conv(2 * width, 2 * width)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, image):
        x = self.stem(image)
        x = x + self.depthwise(x)
        x = self.excite(self.point(x))
        x = torch.max_pool2d(x, 2)
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.last(x).mean((2, 3))
        return self.classifier(x)


def build(width=32):
    return Net(width)
