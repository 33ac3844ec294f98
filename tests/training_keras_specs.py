"""A small Keras network for the embedded digits, and a spec that trains it in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import training_specs

NETWORK = """\
import keras


def build(width=4, dropout=0.1):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, padding="same", name="conv"),
            layers.BatchNormalization(momentum=0.9, name="bn"),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(dropout),
            layers.Dense(10, name="head"),
        ]
    )
"""


def write_spec(folder: Path, code: str = "", **changes: Any) -> Path:
    """Write a spec and its network to a folder; ``code`` is appended to ``net.py``."""
    wanted = {
        "model": {"framework": "keras", "entrypoint": "net:build"},
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 8, 8, 1]}],
        **changes,
    }
    path = training_specs.write_spec(folder, **wanted)
    (folder / "net.py").write_text(NETWORK + code, encoding="utf-8")
    return path


def arrays_of(path: Path) -> dict[str, Any]:
    """Read the arrays of a safetensors file."""
    from safetensors.numpy import load_file

    return load_file(path)


def same_weights(first: Path, second: Path) -> bool:
    """Whether two safetensors files hold the same arrays, bit for bit."""
    one, two = arrays_of(first), arrays_of(second)
    return one.keys() == two.keys() and all(
        one[name].tobytes() == two[name].tobytes() for name in one
    )
