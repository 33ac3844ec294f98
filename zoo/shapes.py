"""Drawn scenes of simple shapes: images with a class for each pixel and a box for each object.

They are what the examples of segmentation, detection and classification learn: no data has to be
downloaded, a small network learns them in minutes, and a network that did not learn fails on them.
The same numbers give the same scenes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ..frameworks.base import import_framework
from ..specs.hints import did_you_mean

Array = np.ndarray[Any, Any]

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
"""Names of the shapes; in masks and boxes the first one that is asked for is class 1."""

_LEAST_VISIBLE = 0.5
"""An object counts when at least this share of it is not hidden by those drawn later."""

_CONTRAST = 60
"""The least distance of an object's colour from that of the ground, in one channel of 0..255."""


@dataclass(frozen=True)
class Scene:
    """One drawn image.

    Attributes:
        image: an RGB image of Pillow.
        mask: the class of each pixel, uint8 ``(height, width)``; 0 is the ground.
        boxes: left, top, right and bottom of the visible part of each object, in pixels, int64
            ``(count, 4)``; right and bottom are the first pixels that do not belong to it.
        labels: the class of each object, int64 ``(count,)``.
    """

    image: Any
    mask: Array
    boxes: Array
    labels: Array


def draw_scene(
    seed: Sequence[int],
    size: tuple[int, int] = (64, 64),
    shapes: Sequence[str] = SHAPES[:3],
    objects: tuple[int, int] = (1, 3),
    scale: tuple[float, float] = (0.25, 0.5),
) -> Scene:
    """Draw a scene: objects in any place, angle and colour before a noisy gradient.

    Args:
        seed: integers that decide everything.
        size: height and width in pixels.
        shapes: those to draw, of :data:`SHAPES`; the first is class 1.
        objects: the least and the greatest number of objects.
        scale: their least and greatest diameter, as a share of the shorter side.

    Raises:
        UsageError: a shape is unknown.
        MissingDependencyError: Pillow is not installed.
    """
    for name in shapes:
        if name not in SHAPES:
            raise UsageError(
                f"unknown shape: found {name!r}; expected one of {', '.join(SHAPES)}",
                hint=did_you_mean(name, SHAPES),
            )
    image_module = import_framework("PIL.Image", "train")
    draw_module = import_framework("PIL.ImageDraw", "train")
    generator = np.random.default_rng(list(seed))
    height, width = size
    pixels, ground = _ground(generator, height, width)
    owner = np.full((height, width), -1)
    labels, areas = [], []
    for index in range(int(generator.integers(objects[0], objects[1] + 1))):
        label = int(generator.integers(len(shapes)))
        stencil = image_module.new("L", (width, height))
        radius = min(height, width) * generator.uniform(*scale) / 2
        centre = [generator.uniform(radius, side - radius) for side in (width, height)]
        angle = generator.uniform(0, 2 * math.pi)
        _stamp(draw_module.Draw(stencil), shapes[label], centre, radius, angle)
        inside = np.asarray(stencil) > 0
        shade = generator.normal(0, 8, (height, width, 3))
        pixels = np.where(inside[..., None], _colour(generator, ground) + shade, pixels)
        owner[inside] = index
        labels.append(label + 1)
        areas.append(int(inside.sum()))
    visible = [(owner == index) for index in range(len(labels))]
    counted = [
        index
        for index, area in enumerate(areas)
        if visible[index].sum() >= max(1, _LEAST_VISIBLE * area)
    ]
    mask = np.where(owner < 0, 0, np.array([*labels, 0])[owner]).astype(np.uint8)
    image = image_module.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    boxes = np.array([_box(visible[index]) for index in counted], np.int64).reshape(-1, 4)
    return Scene(image, mask, boxes, np.array([labels[index] for index in counted], np.int64))


def _ground(generator: np.random.Generator, height: int, width: int) -> tuple[Array, Array]:
    """Return a noisy gradient, float ``(height, width, 3)``, and its middle colour."""
    first, second = generator.uniform(0, 255, (2, 3))
    angle = generator.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[0:height, 0:width]
    along = (columns / width - 0.5) * math.cos(angle) + (rows / height - 0.5) * math.sin(angle)
    middle = (first + second) / 2
    # A quarter of the distance on each side leaves colours that differ from all of the ground.
    pixels = middle + 0.5 * (second - first) * along[..., None]
    noise = generator.normal(0, 12, (height, width, 3))
    return pixels + noise, middle


def _colour(generator: np.random.Generator, ground: Array) -> Array:
    """Return a colour that can be told from the ground."""
    while True:
        colour: Array = generator.uniform(0, 255, 3)
        if np.abs(colour - ground).max() >= _CONTRAST:
            return colour


def _stamp(draw: Any, name: str, centre: Sequence[float], radius: float, angle: float) -> None:
    """Fill a shape in a stencil."""
    x, y = centre
    around = (x - radius, y - radius, x + radius, y + radius)
    if name in ("circle", "ring"):
        draw.ellipse(around, fill=255)
        if name == "ring":
            inner = radius * 0.55
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
        return
    draw.polygon([(x + radius * u, y + radius * v) for u, v in _corners(name, angle)], fill=255)


def _corners(name: str, angle: float) -> list[tuple[float, float]]:
    """Return the corners of a shape, within the unit circle."""
    if name == "cross":
        arm = 0.34
        reach = math.hypot(arm, 1.0)
        polar = [
            (math.hypot(u, v) / reach, math.atan2(v, u) - turn * math.pi / 2)
            for turn in range(4)
            for u, v in ((arm, 1.0), (arm, arm), (1.0, arm))
        ]
    else:
        count, inner = {"square": (4, None), "triangle": (3, None), "star": (5, 0.42)}[name]
        steps = count if inner is None else 2 * count
        polar = [
            (inner if inner is not None and step % 2 else 1.0, 2 * math.pi * step / steps)
            for step in range(steps)
        ]
    return [(r * math.cos(turn + angle), r * math.sin(turn + angle)) for r, turn in polar]


def _box(inside: Array) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
