"""A small network for the embedded digits, and a spec that trains it in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

NETWORK = """\
from torch import nn


def build(width=4, dropout=0.1):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16 * width, 10),
    )
"""


def write_spec(folder: Path, code: str = "", **changes: Any) -> Path:
    """Write a spec and its network to a folder; ``code`` is appended to ``net.py``."""
    (folder / "net.py").write_text(NETWORK + code, encoding="utf-8")
    spec = {
        "model": {"framework": "torch", "entrypoint": "net:build"},
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "task": "classification",
        "data": {"splits": "digits", "kwargs": {"batch_size": 128}},
        "full_trainer": {
            "optimizer": {"name": "SGD", "lr": 0.2, "momentum": 0.9},
            "epochs": 2,
        },
        **changes,
    }
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in spec.items() if v is not None}))
    return path


def same_weights(first: Path, second: Path) -> bool:
    """Whether two safetensors files hold the same tensors, bit for bit."""
    import torch
    from safetensors.torch import load_file

    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
