"""Draw what the example learns from, in the same way each time: textures, pictures and a style.

    python make_data.py [FOLDER] [--textures 480] [--pictures 160]

`textures_train.csv` and `textures_test.csv` list images of six kinds of texture with their labels:
the network that compares images learns to tell them apart. `pictures_train.csv` and
`pictures_test.csv` list images of a few plain shapes before a sky, which get painted; `style.png`
is what they are to look like.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = 48
KINDS = ["plain", "stripes", "waves", "checks", "dots", "grain"]

Array = np.ndarray[Any, Any]


def mixed(weight: Array, colours: Array) -> Array:
    """Return an image of two colours, by a weight 0..1 of the second at each pixel."""
    return colours[0] * (1 - weight[..., None]) + colours[1] * weight[..., None]


def texture(kind: str, draw: np.random.Generator, size: int = SIZE) -> Array:
    """Return a texture, values 0..255, ``(size, size, 3)``."""
    rows, columns = np.mgrid[:size, :size]
    angle, phase = draw.uniform(0, np.pi, 2)
    period = draw.uniform(5, 10)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    if kind == "plain":
        weight = along / size % 1
    elif kind == "stripes":
        weight = (np.sin(2 * np.pi * along / period + phase) > 0) * 1.0
    elif kind == "waves":
        bent = along + 2.5 * np.sin(2 * np.pi * across / (2 * period))
        weight = np.sin(2 * np.pi * bent / period + phase) / 2 + 0.5
    elif kind == "checks":
        weight = (
            np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period) > 0
        ) * 1.0
    elif kind == "dots":
        grid = np.cos(2 * np.pi * along / period) + np.cos(2 * np.pi * across / period)
        weight = (grid > 1.1) * 1.0
    else:
        weight = draw.uniform(0, 1, (size, size))
    return mixed(weight, draw.uniform(0, 255, (2, 3)))


def picture(draw: np.random.Generator) -> Image.Image:
    """Return a picture: a sky, ground, and a few shapes."""
    top, bottom = draw.uniform(90, 255, (2, 3))
    sky = mixed(np.repeat(np.linspace(0, 1, SIZE)[:, None], SIZE, 1), np.stack([top, bottom]))
    image = Image.fromarray(sky.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    horizon = int(draw.integers(SIZE // 2, SIZE - 8))
    pen.rectangle((0, horizon, SIZE, SIZE), fill=tuple(map(int, draw.integers(0, 140, 3))))
    for _ in range(int(draw.integers(2, 5))):
        left, upper = draw.integers(0, SIZE - 14, 2)
        width, height = draw.integers(8, 22, 2)
        colour = tuple(map(int, draw.integers(0, 256, 3)))
        box = (int(left), int(upper), int(left + width), int(upper + height))
        kind = draw.integers(0, 3)
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.rectangle(box, fill=colour)
        else:
            pen.polygon([(box[0], box[3]), (box[2], box[3]), (box[0], box[1])], fill=colour)
    return image


def style() -> Image.Image:
    """Return the image of the style: waves in gold and blue, in two directions."""
    rows, columns = np.mgrid[: 2 * SIZE, : 2 * SIZE]
    bent = rows + 4 * np.sin(2 * np.pi * columns / 24)
    weight = np.sin(2 * np.pi * bent / 9) / 2 + 0.5
    colours = np.array([[20, 40, 120], [245, 195, 60]])
    return Image.fromarray(mixed(weight, colours).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw textures, pictures and a style.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--textures", type=int, default=480)
    parser.add_argument("--pictures", type=int, default=160)
    arguments = parser.parse_args()
    images = arguments.folder / "images"
    images.mkdir(exist_ok=True)
    draw = np.random.default_rng(5)
    rows: dict[str, list[tuple[str, ...]]] = {}
    for index in range(arguments.textures):
        name, label = f"images/texture{index:04}.png", index % len(KINDS)
        values = texture(KINDS[label], draw).astype(np.uint8)
        Image.fromarray(values).save(arguments.folder / name)
        split = "test" if index >= arguments.textures * 3 // 4 else "train"
        rows.setdefault(f"textures_{split}", []).append((name, str(label)))
    for index in range(arguments.pictures):
        name = f"images/picture{index:04}.png"
        picture(draw).save(arguments.folder / name)
        split = "test" if index >= arguments.pictures * 7 // 8 else "train"
        rows.setdefault(f"pictures_{split}", []).append((name,))
    style().save(arguments.folder / "style.png")
    for name, entries in rows.items():
        with (arguments.folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(entries)
        print(f"{arguments.folder / name}.csv: {len(entries)} images")


if __name__ == "__main__":
    main()
