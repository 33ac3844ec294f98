"""Networks of the zoo of every kind are compressed, exported and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ingot

DATA = """\
import torch

from ingot.zoo.digits import load_digits


def images(size, count):
    digits, labels = map(torch.from_numpy, load_digits("train"))
    digits = torch.nn.functional.interpolate(digits[:count], size=size)
    return digits.expand(-1, 3, -1, -1).contiguous(), labels[:count]


def batches(x, y, size=16):
    found = list(zip(x.split(size), y.split(size)))
    return {"train": found, "test": found[:4]}


def digits(size=32, count=64):
    return batches(*images(size, count))


def masks(size=32, count=64):
    x, _ = images(size, count)
    return batches(x, (x[:, 0] > 0.4).long())


def boxes(size=128, count=16):
    torch.manual_seed(0)
    x = 0.1 * torch.rand(count, 3, size, size)
    targets = []
    for image in x:
        left, top = (int(i) for i in torch.randint(0, size // 2, (2,)))
        image[:, top : top + size // 2, left : left + size // 2] += 0.8
        box = torch.tensor([[left, top, left + size // 2, top + size // 2]]) / size
        targets.append({"boxes": box, "labels": torch.tensor([1])})
    found = [(x[i : i + 8], targets[i : i + 8]) for i in range(0, count, 8)]
    return {"train": found, "test": found}
"""

NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {
        "network": {"dataset_name": "cifar10", "width": 0.35},
        "task": "classification",
        "data": "data:digits",
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "size": 32,
    },
    "vit": {
        "network": {"dataset_name": "cifar10"},
        "task": "classification",
        "data": "data:digits",
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "size": 32,
    },
    "unet": {
        "network": {"dataset_name": "cifar10", "num_classes": 2, "width": 8},
        "task": "segmentation",
        "data": "data:masks",
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2, 32, 32]}],
        "size": 32,
    },
    "ssdlite": {
        "network": {"dataset_name": "vww", "num_classes": 2, "width": 0.35},
        "task": "object_detection",
        "data": "data:boxes",
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", None, 2]},
            {"name": "boxes", "dtype": "float32", "shape": ["batch", None, 4]},
        ],
        "size": 128,
    },
}


def write_spec(folder: Path, name: str) -> Path:
    entry = NETWORKS[name]
    (folder / "data.py").write_text(DATA)
    size = entry["size"]
    kwargs = {"image_size": [size, size]} if entry["task"] == "object_detection" else {}
    spec = {
        "model": {
            "framework": "torch",
            "entrypoint": "ingot.zoo:get_model_by_name",
            "kwargs": {"model_name": name, **entry["network"]},
        },
        "inputs": [{"name": "images", "dtype": "float32", "shape": ["batch", 3, size, size]}],
        "outputs": entry["outputs"],
        "task": entry["task"],
        "loss": {"name": "ssd_multibox", **kwargs} if kwargs else None,
        "evaluation": {"kwargs": kwargs, "range": [-100, 100]},
        "data": entry["data"],
        "full_trainer": {"optimizer": {"name": "SGD", "lr": 0.02, "momentum": 0.9}},
        "optimization": {"mode": "compression", "delta": 60},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in spec.items() if value}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_network_is_compressed_exported_and_loaded(name: str, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, name)
    out = tmp_path / "run"
    verdict = ingot.compress(spec, output=out, finetune_epochs=1, max_evaluations=5)

    assert verdict.verdict == "met"
    assert verdict.optimized is not None
    assert verdict.optimized.parameters < 0.7 * verdict.reference.parameters
    assert verdict.optimized.macs < verdict.reference.macs
    size = NETWORKS[name]["size"]
    feeds = {"images": np.random.default_rng(0).random((2, 3, size, size), np.float32)}
    found = []
    for path in (verdict.artifacts[0].path, out / "opt_model.json", out / "opt_model.ingot"):
        with ingot.load(path, trust_code=True) as model:
            found.append(model.infer(feeds))
    for other in found[1:]:
        for key, value in found[0].items():
            scale = np.abs(value).max()
            assert np.abs(value - other[key]).max() < 1e-4 * scale
