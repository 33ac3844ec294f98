"""Write a test image of each digit from 5 to 9 as a PNG, for ``ingot infer tuned.yaml``.

    python draw.py [FOLDER]

writes FOLDER/5.png to FOLDER/9.png (``images``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ingot.zoo.digits import load_digits


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "images")
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits("test")
    for digit in range(5, 10):
        pixels = images[np.flatnonzero(labels == digit)[0], 0]
        Image.fromarray((255 * pixels).round().astype(np.uint8)).save(folder / f"{digit}.png")


if __name__ == "__main__":
    main()
