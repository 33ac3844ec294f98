"""A small trained network for the embedded digits, and a spec that compresses it in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

NETWORK = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image):
        x = torch.max_pool2d(self.norm(self.first(image)).relu(), 2)
        return self.head(self.second(x).relu().mean((2, 3)))


def build(width=16):
    return Net(width)
"""


def write_spec(folder: Path, code: str = "", **changes: Any) -> Path:
    """Write a spec, its network and trained weights; ``code`` is appended to ``net.py``.

    Keys whose value is None are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(NETWORK + code, encoding="utf-8")
    if not (folder / "net.safetensors").exists():
        train_weights(folder / "net.safetensors")
    spec = {
        "model": {"framework": "torch", "entrypoint": "net:build", "weights": "net.safetensors"},
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "task": "classification",
        "data": {"splits": "digits", "kwargs": {"batch_size": 64}},
        "full_trainer": {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}},
        "fine_tuner": {"loop_params": {"epochs": 1}},
        "optimization": {"mode": "compression", "delta": 2.0},
        **changes,
    }
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in spec.items() if v is not None}))
    return path


_TRAINED: dict[str, Any] = {}


def train_weights(path: Path) -> None:
    """Train the network on the digits, once a process, and write its weights."""
    import torch
    from safetensors.torch import save_file

    from ingot.training import fit
    from ingot.zoo.digits import load_digits

    if not _TRAINED:
        scope: dict[str, Any] = {"__name__": "net"}
        exec(NETWORK, scope)
        torch.manual_seed(0)
        network = scope["build"]()
        images, labels = map(torch.from_numpy, load_digits("train"))
        batches = list(zip(images.split(64), labels.split(64), strict=True))
        optimizer = {"name": "SGD", "lr": 0.1, "momentum": 0.9}
        options = {"epochs": 12, "optimizer": optimizer, "scheduler": {"name": "cosine"}}
        fit(network, {"train": batches}, options)
        _TRAINED.update(network.state_dict())
    save_file({name: value.clone() for name, value in _TRAINED.items()}, path)
