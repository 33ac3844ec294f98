"""MobileNetV2, in Keras."""

from __future__ import annotations

from typing import Any

from ...frameworks.keras import import_keras
from .keras_layers import convolution, dense, normed, padded
from .sizes import MOBILENET_V2_STAGES, is_small, scaled_channels


def mobilenet_v2(
    classes: int,
    channels: int,
    image_size: int,
    *,
    width: float = 1.0,
    small_images: bool | None = None,
) -> Any:
    """Build MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381).

    It takes float32 images ``(batch, height, width, channels)``, called ``image``, and returns
    ``logits`` ``(batch, classes)``.

    Args:
        classes: how many there are.
        channels: of the images.
        image_size: their height and width, which decides about ``small_images``; others do, too.
        width: the paper's width multiplier; the last convolution keeps at least 1280 channels.
        small_images: the first convolution and the second stage keep the resolution; by default
            true up to 64 pixels.
    """
    keras = import_keras()
    layers = keras.layers
    is_of_small = is_small(image_size, small_images)
    image = keras.Input((None, None, channels), dtype="float32", name="image")
    x = convolution(image, scaled_channels(32, width), 3, 1 if is_of_small else 2, "stem")
    x = layers.ReLU(6.0, name="stem_relu")(normed(x, "stem_bn"))
    for stage, (expansion, count, blocks, stride) in enumerate(MOBILENET_V2_STAGES):
        outputs = scaled_channels(count, width)
        for index in range(blocks):
            keep = index > 0 or (is_of_small and stage == 1)
            name = f"stage{stage}_block{index}"
            x = _inverted_residual(x, outputs, 1 if keep else stride, expansion, name)
    x = convolution(x, scaled_channels(1280, max(1.0, width)), 1, 1, "last")
    x = layers.ReLU(6.0, name="last_relu")(normed(x, "last_bn"))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(image, dense(x, classes, "logits"), name="mobilenet_v2")


def _inverted_residual(x: Any, outputs: int, stride: int, expansion: int, name: str) -> Any:
    """Expand, filter each channel, project; a shortcut around it where nothing changes size."""
    layers = import_keras().layers
    y, inputs = x, x.shape[-1]
    if expansion != 1:
        y = normed(convolution(y, inputs * expansion, 1, 1, f"{name}_expand"), f"{name}_expand_bn")
        y = layers.ReLU(6.0, name=f"{name}_expand_relu")(y)
    y, padding = padded(y, 3, stride, f"{name}_filter")
    y = layers.DepthwiseConv2D(
        3,
        stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_filter",
    )(y)
    y = layers.ReLU(6.0, name=f"{name}_filter_relu")(normed(y, f"{name}_filter_bn"))
    y = normed(convolution(y, outputs, 1, 1, f"{name}_project"), f"{name}_project_bn")
    is_residual = stride == 1 and inputs == outputs
    return layers.Add(name=f"{name}_add")([x, y]) if is_residual else y
