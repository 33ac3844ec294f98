"""Augmentation of images: of small ones, as CIFAR is trained with, and of images with targets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from ..errors import SpecError
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


class JointAugmenter(Augmenter):
    """Changes images, and what stands for places in them in the same way: masks or boxes."""

    @abstractmethod
    def with_masks(
        self, images: Array, masks: Array, generator: np.random.Generator | None
    ) -> tuple[Array, Array]:
        """Return changed images and masks.

        Args:
            images: as for :meth:`__call__`.
            masks: ``(batch, height, width)``, never written to.
            generator: as for :meth:`__call__`.
        """

    @abstractmethod
    def with_boxes(
        self, images: Array, boxes: Sequence[Array], generator: np.random.Generator | None
    ) -> tuple[Array, list[Array]]:
        """Return changed images and boxes.

        Args:
            images: as for :meth:`__call__`.
            boxes: of each image left, top, right and bottom, as fractions of its size, ``(count,
                4)``, never written to.
            generator: as for :meth:`__call__`.
        """


class MirrorAugmenter(CifarAugmenter, JointAugmenter):
    """Mirrors every other image with its mask or its boxes, and changes brightness and contrast.

    Args:
        brightness: as for :class:`CifarAugmenter`.
        contrast: likewise.
        standardise: likewise.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: tuple[float, float] | None = None,
        standardise: bool = False,
    ) -> None:
        super().__init__(0, False, brightness, contrast, standardise)

    def __call__(self, images: Array, generator: np.random.Generator | None) -> Array:
        return super().__call__(self._mirrored(images, generator)[0], generator)

    def with_masks(
        self, images: Array, masks: Array, generator: np.random.Generator | None
    ) -> tuple[Array, Array]:
        images, chosen = self._mirrored(images, generator)
        masks = np.where(chosen[:, None, None], masks[..., ::-1], masks)
        return super().__call__(images, generator), masks

    def with_boxes(
        self, images: Array, boxes: Sequence[Array], generator: np.random.Generator | None
    ) -> tuple[Array, list[Array]]:
        images, chosen = self._mirrored(images, generator)
        found = [
            np.abs(np.array([1, 0, 1, 0], np.float32) - entry[:, [2, 1, 0, 3]]) if flag else entry
            for entry, flag in zip(boxes, chosen, strict=True)
        ]
        return super().__call__(images, generator), found

    def _mirrored(
        self, images: Array, generator: np.random.Generator | None
    ) -> tuple[Array, Array]:
        """Return images of which some are mirrored, and which."""
        if generator is None:
            return images, np.zeros(len(images), bool)
        chosen = generator.random(len(images)) < 0.5
        return np.where(chosen[:, None, None, None], images[..., ::-1], images), chosen


def require_joint(augmenter: Augmenter | None, label: str, beside: str) -> JointAugmenter | None:
    """Return an augmenter that changes targets, too.

    Raises:
        SpecError: it changes images alone.
    """
    if augmenter is None or isinstance(augmenter, JointAugmenter):
        return augmenter
    raise SpecError(
        f"{label}: training.augmenter: {type(augmenter).__name__} changes images without their"
        f" {beside}; expected a JointAugmenter",
        hint="the built-in one is mirror",
    )
