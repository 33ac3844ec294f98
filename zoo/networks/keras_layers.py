"""What several of the Keras networks are made of; they compute what those of PyTorch do."""

from __future__ import annotations

from typing import Any

from ...frameworks.keras import import_keras


def convolution(x: Any, outputs: int, size: int, stride: int, name: str) -> Any:
    """Return a convolution without bias that keeps the size (before its stride).

    It is drawn from the normal distribution of He et al. (2015, arXiv:1502.01852).
    """
    x, padding = padded(x, size, stride, name)
    return import_keras().layers.Conv2D(
        outputs,
        size,
        stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def padded(x: Any, size: int, stride: int, name: str) -> tuple[Any, str]:
    """Return what a convolution gets, and its ``padding``.

    ``same`` would pad a convolution with a stride of 2 on one side only, and shift the image.
    """
    if stride == 1 or size == 1:
        return x, "same" if stride == 1 else "valid"
    return import_keras().layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x), "valid"


def normed(x: Any, name: str) -> Any:
    """Return a BatchNorm with the numbers of PyTorch."""
    return import_keras().layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def dense(x: Any, outputs: int, name: str) -> Any:
    """Return a dense layer, drawn as PyTorch draws one."""
    keras = import_keras()
    limit = x.shape[-1] ** -0.5
    draw = keras.initializers.RandomUniform
    return keras.layers.Dense(
        outputs,
        kernel_initializer=draw(-limit, limit),
        bias_initializer=draw(-limit, limit),
        name=name,
    )(x)
