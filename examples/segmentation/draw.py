"""Draw the data of segmentation.yaml: scenes of shapes, and a PNG with the class of each pixel.

    python draw.py [FOLDER] [TRAIN] [TEST]

writes FOLDER/train.csv and FOLDER/test.csv (``data``), rows ``image,mask``, and their files: masks
lie in folders of their own.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from PIL import Image

from ingot.zoo.shapes import draw_scene


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    counts = [int(text) for text in sys.argv[2:4]] or [1000, 200]
    for number, (split, count) in enumerate(zip(("train", "test"), counts, strict=True)):
        for name in (split, f"{split}_masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            for index in range(count):
                scene = draw_scene((number, index), scale=(0.3, 0.6))
                names = f"{split}/{index:04}.png", f"{split}_masks/{index:04}.png"
                scene.image.save(folder / names[0])
                Image.fromarray(scene.mask).save(folder / names[1])
                rows.writerow(names)
        print(f"{split}.csv: {count} images")


if __name__ == "__main__":
    main()
