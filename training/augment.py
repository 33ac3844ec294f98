"""Augmentation of small images, as CIFAR is trained with."""

from __future__ import annotations

import numpy as np

from .inputter import Array, Augmenter


class CifarAugmenter(Augmenter):
    """Random crop, flip, brightness and contrast; then, always, standardisation of each image.

    Args:
        padding: zero pixels on each side before an image of the old size is cut out; 0 crops none.
        flip: mirror every other image.
        brightness: the most that is added to all values of an image (of 0..255), or taken off.
        contrast: lowest and highest factor of the distance from the mean of a channel.
        standardise: subtract from each image its mean, and divide by its standard deviation
            (at least ``1/sqrt(values)``); outside of training, too.
    """

    def __init__(
        self,
        padding: int = 4,
        flip: bool = True,
        brightness: float = 0.0,
        contrast: tuple[float, float] | None = None,
        standardise: bool = False,
    ) -> None:
        self.padding, self.flip = padding, flip
        self.brightness, self.contrast = brightness, contrast
        self.standardise = standardise

    def __call__(self, images: Array, generator: np.random.Generator | None) -> Array:
        if generator is not None:
            images = self._moved(images, generator)
            images = self._coloured(images, generator)
        if self.standardise:
            images = images.astype(np.float32)
            axes = (1, 2, 3)
            deviation = images.std(axes, keepdims=True)
            least = np.float32(np.prod(images.shape[1:]) ** -0.5)
            images = (images - images.mean(axes, keepdims=True)) / np.maximum(deviation, least)
        return images

    def _moved(self, images: Array, generator: np.random.Generator) -> Array:
        count, _, height, width = images.shape
        if self.padding:
            pad = self.padding
            padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
            top, left = generator.integers(0, 2 * pad + 1, (2, count))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
            images = windows[np.arange(count), :, top, left]
        if self.flip:
            mirrored = generator.random(count) < 0.5
            images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
        return images

    def _coloured(self, images: Array, generator: np.random.Generator) -> Array:
        shape = (len(images), 1, 1, 1)
        if self.brightness:
            shift = generator.uniform(-self.brightness, self.brightness, shape)
            images = images + shift.astype(np.float32)
        if self.contrast is not None:
            factor = generator.uniform(*self.contrast, shape).astype(np.float32)
            means = images.mean((2, 3), keepdims=True, dtype=np.float32)
            images = (images - means) * factor + means
        return images
