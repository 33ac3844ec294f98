"""Code of a user's beside the spec of ``compress_specs``, and what tests of searches need."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot

CODE = """

import os
import threading
from pathlib import Path

import numpy as np

from ingot.zoo.digits import load_digits

HERE = Path(__file__).parent


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Hidden(Net):
    def forward(self, image):
        x = torch.from_numpy(self.first(image).detach().numpy())
        return self.head(self.second(x).relu().mean((2, 3)))


class Single(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(64, 10)

    def forward(self, image):
        return self.only(image.flatten(1))


def batches(name, noise=0.0, size=64):
    images, labels = map(torch.from_numpy, load_digits(name))
    images = images + noise
    return list(zip(images.split(size), labels.split(size)))


def from_file():
    shift = float(np.load(HERE / "shift.npy"))
    return {"train": batches("train", shift), "test": batches("test", shift)}


class Shaken:
    def __init__(self, name):
        self.name = name

    def __iter__(self):
        return iter(batches(self.name, int.from_bytes(os.urandom(4), "little") / 2**38))


def never_the_same():
    return {"train": Shaken("train"), "test": Shaken("test")}


def empty():
    return {"train": batches("train"), "test": []}


def confirmed():
    held = np.load(HERE / "confirm.npz")
    confirm = [(torch.from_numpy(held["image"]), torch.from_numpy(held["logits"]))]
    return {"train": batches("train"), "test": batches("test"), "confirm": confirm}


def agreement(model, loader):
    # The accuracy; of the split that holds the reference's own scores, whether they are the same.
    hits = []
    for x, y in loader:
        scores = model(x)
        if y.is_floating_point():
            hits += [float(torch.allclose(scores, y, atol=1e-3))] * len(y)
        else:
            hits += (scores.argmax(1) == y).float().tolist()
    return {"accuracy": 100 * sum(hits) / len(hits), "per_sample": hits}


def accuracy(model, loader):
    hits = [hit for x, y in loader for hit in (model(x).argmax(1) == y).tolist()]
    return {"accuracy": 100 * sum(hits) / len(hits)}


def smaller_is_better(model, loader):
    # Of a split with scores, as above; else a number that grows as the network gets smaller.
    if any(y.is_floating_point() for _, y in loader):
        return {"score": agreement(model, loader)["accuracy"]}
    if hasattr(model, "parameters"):
        return {"score": 100 - sum(p.numel() for p in model.parameters()) / 1000}
    return {"score": 100 - (HERE / "run" / model.label).stat().st_size / 4000}


def error(model, loader):
    wrong = count = 0
    for x, y in loader:
        wrong += int((model(x).argmax(1) != y).sum())
        count += len(y)
    return {"error": wrong / count}


def no_number(model, loader):
    return {"accuracy": float("nan")}


class Loop:
    def train(self, model, epochs, validation, finetuning):
        before = validation(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        model.train()
        for _ in range(epochs):
            for x, y in batches("train"):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        model.eval()
        assert set(before) == set(validation(model))
        (HERE / "loop.txt").write_text(f"{epochs} {finetuning}")
        return model
"""
OWN = {"task": None, "loss": "cross_entropy"}


class Stopped(Exception):
    """A test has seen enough of a search."""


def stop_at(text: str) -> Any:
    def progress(line: str) -> None:
        if text in line:
            raise Stopped

    return progress


def begin(spec: Path, until: str = "groups of", **options: Any) -> None:
    """Begin a search, and leave it as a crash would: with the journal that it has."""
    with pytest.raises(Stopped):
        ingot.compress(spec, progress=stop_at(until), **options)


def model_of(name: str) -> dict[str, Any]:
    return {"framework": "torch", "entrypoint": f"net:{name}", "weights": "net.safetensors"}


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def network(folder: Path) -> Any:
    """Return the user's own class, built as ever."""
    module_spec = importlib.util.spec_from_file_location("users_net", folder / "net.py")
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.build()


def scores(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with ingot.load(path) as model:
        found: np.ndarray[Any, Any] = model.infer({"image": images})["logits"]
    return found
