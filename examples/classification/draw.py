"""Draw the data of resnet32.yaml: one shape in each image.

    python draw.py [FOLDER] [TRAIN] [TEST]

writes FOLDER/train.csv and FOLDER/test.csv (``data``), rows ``path,label``, and the images.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from ingot.zoo.shapes import SHAPES, draw_scene


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    counts = [int(text) for text in sys.argv[2:4]] or [1200, 300]
    for number, (split, count) in enumerate(zip(("train", "test"), counts, strict=True)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            for index in range(count):
                shape = index % len(SHAPES)
                scene = draw_scene(
                    (number, index), (32, 32), [SHAPES[shape]], objects=(1, 1), scale=(0.6, 0.95)
                )
                scene.image.save(folder / split / f"{index:04}.png")
                rows.writerow([f"{split}/{index:04}.png", shape])
        print(f"{split}.csv: {count} images")


if __name__ == "__main__":
    main()
