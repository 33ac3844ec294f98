"""The residual networks for small images, in Keras: ResNet-20, -32 and -56."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError
from ...frameworks.keras import import_keras
from .keras_layers import convolution, dense, normed


def resnet20(
    classes: int, channels: int, image_size: int, *, width: int = 16, shortcut: str = "B"
) -> Any:
    """Build ResNet-20, for images of any size (see :func:`cifar_resnet`)."""
    return cifar_resnet(20, classes, channels, width, shortcut)


def resnet32(
    classes: int, channels: int, image_size: int, *, width: int = 16, shortcut: str = "B"
) -> Any:
    """Build ResNet-32, for images of any size (see :func:`cifar_resnet`)."""
    return cifar_resnet(32, classes, channels, width, shortcut)


def resnet56(
    classes: int, channels: int, image_size: int, *, width: int = 16, shortcut: str = "B"
) -> Any:
    """Build ResNet-56, for images of any size (see :func:`cifar_resnet`)."""
    return cifar_resnet(56, classes, channels, width, shortcut)


def cifar_resnet(depth: int, classes: int, channels: int, width: int, shortcut: str) -> Any:
    """Build a network of 6n+2 layers (He et al., 2015, arXiv:1512.03385, section 4.2).

    It takes float32 images ``(batch, height, width, channels)``, called ``image``, and returns
    ``logits`` ``(batch, classes)``. It computes what the one of PyTorch does with the same weights:
    convolutions pad by one pixel on each side, also where they stride.

    Args:
        depth: its layers.
        classes: how many there are.
        channels: of the images.
        width: channels of the first stage; the others have two and four times as many.
        shortcut: where the size changes: ``B``, a projection, or ``A``, as in the paper's figures.

    Raises:
        UsageError: another shortcut.
    """
    if shortcut not in ("A", "B"):
        raise UsageError(f"resnet{depth}: shortcut: found {shortcut!r}; expected 'A' or 'B'")
    keras = import_keras()
    layers = keras.layers
    image = keras.Input((None, None, channels), dtype="float32", name="image")
    x = layers.ReLU(name="stem_relu")(normed(convolution(image, width, 3, 1, "stem"), "bn"))
    for stage in range(3):
        outputs = width * 2**stage
        for index in range((depth - 2) // 6):
            stride = 2 if stage > 0 and index == 0 else 1
            x = _block(x, outputs, stride, shortcut, f"stage{stage}_block{index}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, dense(x, classes, "logits"), name=f"resnet{depth}")


def _block(x: Any, outputs: int, stride: int, shortcut: str, name: str) -> Any:
    """Two 3x3 convolutions and the shortcut around them (figure 2 of the paper)."""
    keras = import_keras()
    layers = keras.layers
    y = normed(convolution(x, outputs, 3, stride, f"{name}_c1"), f"{name}_b1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = normed(convolution(y, outputs, 3, 1, f"{name}_c2"), f"{name}_b2")
    extra = outputs - x.shape[-1]
    if (stride != 1 or extra) and shortcut == "A":
        x = layers.AveragePooling2D(1, stride, name=f"{name}_drop")(x)  # drops pixels: size 1
        x = keras.ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra)))
    elif stride != 1 or extra:
        x = normed(convolution(x, outputs, 1, stride, f"{name}_d"), f"{name}_bd")
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([y, x]))
