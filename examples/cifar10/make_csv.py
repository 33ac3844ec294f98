"""Write train.csv and test.csv for a zip of images ``SPLIT/CLASS/NAME.jpg``.

    python make_csv.py ZIP [FOLDER]

A row is ``path,label``; labels follow the alphabetical order of the classes.
"""

from __future__ import annotations

import csv
import sys
import zipfile
from pathlib import Path


def main() -> None:
    archive = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.endswith(".jpg"))
    classes = sorted({name.split("/")[1] for name in names})
    for split in ("train", "test"):
        rows = [(n, classes.index(n.split("/")[1])) for n in names if n.startswith(f"{split}/")]
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        print(f"{split}.csv: {len(rows)} images of {len(classes)} classes")


if __name__ == "__main__":
    main()
