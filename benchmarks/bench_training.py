"""Training and evaluation of a ResNet-20 on CIFAR-sized images, against bare PyTorch loops.

The same network, data, batch and options; a round is an epoch, and the contenders take turns. The
target is 0.95 of the images per second of the bare loop. The last row decodes JPEGs: the inputter
has to be faster than what trains on them. It uses one thread (``OMP_NUM_THREADS``), as two that
share busy cores are many times slower.
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from measure import Row, print_table, quotient, seconds_of, take_turns
from PIL import Image
from torch.nn import functional

from ingot.training import fit, measure
from ingot.training.data import ArrayInputter, DataContext
from ingot.training.image_csv import csv_splits
from ingot.zoo import get_model_by_name

ROUNDS = int(os.environ.get("INGOT_BENCH_ROUNDS", "5"))
SAMPLES, BATCH = 768, 128
TARGET = 1 / 0.95
JPEGS = 4000


def arrays() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((SAMPLES, 3, 32, 32), np.float32)
    return images, generator.integers(0, 10, SAMPLES)


def loader() -> ArrayInputter:
    return ArrayInputter(arrays(), BATCH, shuffle=True, convert=torch.from_numpy)


def bare_training(model: torch.nn.Module, data: tuple[Any, Any], bf16: bool) -> Callable[[], None]:
    x, y = map(torch.from_numpy, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def epoch() -> None:
        model.train()
        for chosen in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = functional.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            loss.item()

    return epoch


def our_training(model: torch.nn.Module, **options: Any) -> Callable[[], None]:
    from ingot.training.options import TrainerOptions

    data = {"train": loader()}
    optimizer = {"name": "SGD", "lr": 0.01, "momentum": 0.9}
    chosen = TrainerOptions(epochs=1, optimizer=optimizer, **options)
    return lambda: fit(model, data, chosen) and None


def bare_evaluation(model: torch.nn.Module, data: tuple[Any, Any]) -> Callable[[], None]:
    x, y = map(torch.from_numpy, data)

    def run() -> None:
        model.eval()
        hits = 0
        with torch.no_grad():
            for images, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
                hits += int((model(images).argmax(1) == labels).sum())

    return run


def jpeg_seconds(folder: Path) -> float:
    """Seconds to decode an image, on all free cores."""
    generator = np.random.default_rng(0)
    with (folder / "all.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        for index in range(JPEGS):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).resize((32, 32)).save(data, "JPEG")
            (folder / f"{index}.jpg").write_bytes(data.getvalue())
            rows.writerow((f"{index}.jpg", index % 10))
    context = DataContext(folder, convert=torch.from_numpy)
    files = {"train": "all.csv"}
    inputter = csv_splits(context, num_classes=10, files=files, batch_size=BATCH, cache=False)
    start = time.perf_counter()
    for _ in inputter["train"]:
        pass
    return (time.perf_counter() - start) / JPEGS


def main() -> None:
    torch.manual_seed(0)
    data = arrays()
    rows: list[Row] = []
    last = 0.0
    cases: dict[str, dict[str, Any]] = {
        "train, fp32": {},
        "train, channels-last": {"channels_last": True},
        "train, bf16": {"precision": "bf16"},
        "train, bf16, channels-last": {"precision": "bf16", "channels_last": True},
    }
    for name, options in cases.items():
        models = [get_model_by_name("resnet20", "cifar10") for _ in range(2)]
        if options.get("channels_last"):
            models[1] = models[1].to(memory_format=torch.channels_last)
        found = take_turns(
            {
                "ours": seconds_of(our_training(models[0], **options)),
                "bare": seconds_of(bare_training(models[1], data, "precision" in options)),
            },
            ROUNDS,
        )
        ours, bare = (1e6 * found[key] / SAMPLES for key in ("ours", "bare"))
        last = found["ours"] / SAMPLES
        rows.append(quotient(name, ours, bare, "µs/image", TARGET))
    model = get_model_by_name("resnet20", "cifar10")
    test = {"test": ArrayInputter(data, BATCH, convert=torch.from_numpy)}
    found = take_turns(
        {
            "ours": seconds_of(lambda: measure(model, test) and None),
            "bare": seconds_of(bare_evaluation(model, data)),
        },
        ROUNDS,
    )
    ours, bare = (1e6 * found[key] / SAMPLES for key in ("ours", "bare"))
    rows.append(quotient("evaluate", ours, bare, "µs/image", TARGET))
    with tempfile.TemporaryDirectory() as folder:
        decode = jpeg_seconds(Path(folder))
    rows.append(quotient("decode JPEGs, against training", 1e6 * decode, 1e6 * last, "µs/image", 1))
    print_table(rows)
    print(f"alternative: a bare loop of PyTorch {torch.__version__}, batches of {BATCH}")


if __name__ == "__main__":
    main()
