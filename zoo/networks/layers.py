"""What several of the networks are made of."""

from __future__ import annotations

from torch import nn


def init_he(module: nn.Module) -> None:
    """Draw the convolutions from the normal distribution of He et al. (2015, arXiv:1502.01852)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ConvBNReLU6(nn.Sequential):
    """A convolution that keeps the size (before its stride), BatchNorm, and ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(
                inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False
            ),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )
