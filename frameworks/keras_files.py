"""Writes ``.keras`` files that are the same for the same model."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .base import first_line


def save_keras(model: Any, file: Path) -> None:
    """Save a model as a ``.keras`` file whose bytes depend on the model only.

    Keras writes the date and addresses of objects into it, and gives the archive's entries the
    time of saving.

    Raises:
        ModelError: Keras cannot save it.
    """
    draft = file.with_name(f"draft-{file.name}")
    try:
        model.save(draft)
    except Exception as error:
        raise ModelError(f"{model.name}: Keras cannot save it: {first_line(error)}") from error
    with zipfile.ZipFile(draft) as old, zipfile.ZipFile(file, "w") as new:
        for name in sorted(old.namelist()):
            info = zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            if name == "metadata.json":
                metadata = json.loads(old.read(name))
                metadata["date_saved"] = "2000-01-01@00:00:00"
                new.writestr(info, json.dumps(metadata, sort_keys=True))
                continue
            if name == "config.json":
                new.writestr(info, json.dumps(number_objects(json.loads(old.read(name)), {})))
                continue
            with old.open(name) as source, new.open(info, "w", force_zip64=True) as target:
                while block := source.read(1 << 20):
                    target.write(block)
    draft.unlink()


def number_objects(value: Any, numbers: dict[int, int]) -> Any:
    """Replace the addresses by which Keras tells shared objects apart with consecutive numbers.

    Args:
        value: the record of a model, or a part of it.
        numbers: the numbers given so far, by address; filled here.
    """
    if isinstance(value, list):
        return [number_objects(item, numbers) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: numbers.setdefault(item, len(numbers))
        if key == "shared_object_id" and isinstance(item, int)
        else number_objects(item, numbers)
        for key, item in value.items()
    }
