"""Callbacks of ``infer`` that show predictions: labelled images, overlaid masks, boxes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from .callbacks import Callback
from .image_predictions import BoxPrediction, ClassPrediction, MaskPrediction, class_name
from .inputter import Array

_SMALLEST = 256
"""Pixels of the longer side that a picture has at least: smaller images are magnified."""

_FONT_SIZE = 13


class Display(Callback):
    """Shows predictions of ``infer``; it does nothing while a network is trained."""

    @abstractmethod
    def names(self, stem: str) -> list[str]:
        """Return the names of the files that one prediction is written to.

        Args:
            stem: what tells the sample from others.
        """

    @abstractmethod
    def contents(self, prediction: Any) -> list[Any]:
        """Return what these files hold: text, or images of Pillow."""


class InferBasic(Callback):
    """Nothing of its own: what ``infer`` does always, by the name that other suites call it."""


class ImageClassificationDisplay(Display):
    """Writes the image with its likeliest classes below it.

    Args:
        most: how many classes.
    """

    def __init__(self, most: int = 3) -> None:
        self.most = most

    def names(self, stem: str) -> list[str]:
        return [f"{stem}.png"]

    def contents(self, prediction: ClassPrediction) -> list[Any]:
        image, _ = _magnified(prediction.sample)
        lines = [f"{name} {100 * value:.1f} %" for name, value in prediction.ranked(self.most)]
        return [_captioned(image, lines)]


class ImageSegmentationDisplay(Display):
    """Writes the image beside itself with its mask laid over it, and the mask as a palette PNG.

    Args:
        opacity: of the mask, 0..1.
    """

    def __init__(self, opacity: float = 0.5) -> None:
        self.opacity = opacity

    def names(self, stem: str) -> list[str]:
        return [f"{stem}.png", f"{stem}_mask.png"]

    def contents(self, prediction: MaskPrediction) -> list[Any]:
        from PIL import Image

        image, factor = _magnified(prediction.sample)
        mask = np.kron(prediction.mask, np.ones((factor, factor), prediction.mask.dtype))
        colours = colour_map(int(mask.max()) + 1)
        laid = Image.fromarray(colours[mask])
        shown = Image.new("RGB", (2 * image.width, image.height))
        shown.paste(image, (0, 0))
        shown.paste(Image.blend(image, laid, self.opacity), (image.width, 0))
        classes = [index for index, _ in prediction.shares()]
        lines = [class_name(index, prediction.names) for index in classes]
        squares = [tuple(map(int, colours[index])) for index in classes]
        return [_captioned(shown, lines, squares), _palette_image(prediction.mask)]


class ObjectDetectionDisplay(Display):
    """Writes the image with its boxes, their classes and scores."""

    def names(self, stem: str) -> list[str]:
        return [f"{stem}.png"]

    def contents(self, prediction: BoxPrediction) -> list[Any]:
        from PIL import ImageDraw

        image, factor = _magnified(prediction.sample)
        draw = ImageDraw.Draw(image)
        colours = colour_map(int(prediction.classes.max(initial=0)) + 1)
        font = _font()
        # The surest is drawn last, above the others.
        for index in reversed(range(len(prediction.boxes))):
            colour = tuple(map(int, colours[prediction.classes[index]]))
            left, top, right, bottom = (float(v) * factor for v in prediction.boxes[index])
            draw.rectangle(
                (left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2
            )
            text = f"{prediction.name(index)} {100 * prediction.scores[index]:.0f}"
            place = draw.textbbox((left + 2, max(0.0, top - _FONT_SIZE - 3)), text, font=font)
            draw.rectangle((place[0] - 2, place[1] - 1, place[2] + 2, place[3] + 1), fill=colour)
            draw.text(
                (left + 2, max(0.0, top - _FONT_SIZE - 3)), text, font=font, fill=_ink(colour)
            )
        return [image]


def colour_map(count: int) -> Array:
    """Return the colours of classes, uint8 ``(count, 3)``: those of the PASCAL VOC devkit.

    Its ``VOClabelcolormap`` spreads the bits of a class's number over red, green and blue, from the
    highest bit of each on; class 0 is black.
    """
    found = np.zeros((count, 3), np.uint8)
    for index in range(count):
        rest = index
        for bit in range(7, -1, -1):
            for channel in range(3):
                found[index, channel] |= ((rest >> channel) & 1) << bit
            rest >>= 3
    return found


def _palette_image(mask: Array) -> Any:
    """Return a mask as an image of class numbers; with a palette, up to 256 classes."""
    from PIL import Image

    picture = Image.fromarray(mask)
    if mask.dtype == np.uint8:
        picture.putpalette(colour_map(256).tobytes())
    return picture


def _magnified(path: str) -> tuple[Any, int]:
    """Return an image as RGB, by a whole factor as large as people can see, and the factor."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    factor = max(1, -(-_SMALLEST // max(image.size)))
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        image = image.resize(size, Image.Resampling.NEAREST)
    return image, factor


def _captioned(image: Any, lines: list[str], squares: list[tuple[int, ...]] | None = None) -> Any:
    """Return an image with lines of text below it, each after a square of its colour."""
    from PIL import Image, ImageDraw

    font, height = _font(), _FONT_SIZE + 6
    whole = Image.new("RGB", (image.width, image.height + height * len(lines) + 4), "white")
    whole.paste(image, (0, 0))
    draw = ImageDraw.Draw(whole)
    for index, line in enumerate(lines):
        top, left = image.height + 2 + index * height, 4
        if squares is not None:
            box = (left, top + 3, left + _FONT_SIZE, top + 3 + _FONT_SIZE)
            draw.rectangle(box, fill=squares[index], outline="black")
            left += _FONT_SIZE + 6
        draw.text((left, top + 1), line, font=font, fill="black")
    return whole


def _ink(colour: tuple[int, ...]) -> str:
    """Return black or white, what can be read on a colour (by its luma, ITU-R BT.601)."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(_FONT_SIZE)
