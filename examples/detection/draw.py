"""Draw the data of detection.yaml: scenes of shapes, and annotation files as COCO has them.

    python draw.py [FOLDER] [TRAIN] [TEST]

writes FOLDER/train.json and FOLDER/test.json (``data``), and the images beside them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ingot.zoo.shapes import SHAPES, draw_scene

SIZE = 96


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data")
    counts = [int(text) for text in sys.argv[2:4]] or [1000, 200]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(SHAPES[:3])]
    for number, (split, count) in enumerate(zip(("train", "test"), counts, strict=True)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            scene = draw_scene((number, index), (SIZE, SIZE), objects=(1, 2), scale=(0.35, 0.7))
            name = f"{split}/{index:04}.png"
            scene.image.save(folder / name)
            images.append({"id": index, "file_name": name, "width": SIZE, "height": SIZE})
            for box, label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
                left, top, right, bottom = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": label,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                    }
                )
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(document))
        print(f"{split}.json: {count} images, {len(annotations)} boxes")


if __name__ == "__main__":
    main()
