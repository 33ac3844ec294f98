"""``ingot compress`` against torch-pruning's own pruner, whose ratio is found by bisection.

Both start from the same trained network and get the same number of epochs in all; both are measured
on the same split, and both drops count from the better of the network that was given and that
network after as many epochs of further training. What counts is how many parameters are left.

    python benchmarks/bench_compress.py [digits] [resnet20] [vgg11] [vgg19]

``digits`` takes two minutes and is the default; the others take CIFAR-10 as images from
``INGOT_SHARED`` and hours on a CPU. ``INGOT_BENCH_EPOCHS`` changes the number of epochs.
"""

from __future__ import annotations

import copy
import csv
import logging
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch_pruning as tp
import yaml

import ingot
from ingot.optimizers.pruning.recovery import first_rate, recovery_options
from ingot.specs import load_spec
from ingot.training.assess import evaluate_on
from ingot.training.problem import Problem
from ingot.training.train import train_network

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("INGOT_SHARED", HERE.parent.parent / "shared"))
DELTA = 1.0
TARGET = {"digits": 5.0, "resnet20": 1.5}
"""Of digits: parameters removed by us; of ResNet-20: the same, as a multiple of torch-pruning's."""


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: what it is called.
        spec: its spec; the network is trained by it first if it has no weights.
        epochs: of training that either contender gets.
        step: epochs after each step of our search.
        tries: of the bisection, which share the epochs.
        channels: of its images, with their size.
    """

    name: str
    spec: dict[str, Any]
    epochs: int
    step: int
    tries: int
    shape: tuple[int, int, int]


def classifier(shape: tuple[int, int, int], trainer: dict[str, Any], **more: Any) -> dict[str, Any]:
    tensor = {"dtype": "float32"}
    return {
        "inputs": [{"name": "image", "shape": ["batch", *shape], **tensor}],
        "outputs": [{"name": "logits", "shape": ["batch", 10], **tensor}],
        "task": "classification",
        "full_trainer": trainer,
        "optimization": {"mode": "compression", "delta": DELTA},
        **more,
    }


def cifar(folder: Path, entry: dict[str, Any], epochs: int, lr: float) -> dict[str, Any]:
    """Return a spec that reads CIFAR-10 as JPEGs out of the archive."""
    archive = SHARED / "data" / "cifar10-jpg.zip"
    names = sorted(n for n in zipfile.ZipFile(archive).namelist() if n.endswith(".jpg"))
    classes = sorted({name.split("/")[1] for name in names})
    for split in ("train", "test"):
        rows = [(n, classes.index(n.split("/")[1])) for n in names if n.startswith(f"{split}/")]
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    kwargs = {
        "files": {"train": "train.csv", "test": "test.csv"},
        "archive": str(archive),
        "num_classes": 10,
        "mean": [value / 255 for value in (125.3, 123.0, 113.9)],
        "std": [value / 255 for value in (63.0, 62.1, 66.7)],
    }
    optimizer = {"name": "SGD", "lr": lr, "momentum": 0.9, "weight_decay": 5e-4}
    return classifier(
        (3, 32, 32),
        {"epochs": epochs, "optimizer": optimizer, "scheduler": "cosine"},
        model={"framework": "torch", **entry},
        data={"splits": "csv", "kwargs": kwargs},
        training={
            "augmenter": {"name": "cifar", "brightness": 0, "contrast": [1.0, 1.0]},
            "batch_size": 128,
            "precision": "bf16",
            "channels_last": True,
        },
    )


def case(name: str, folder: Path) -> Case:
    if name == "digits":
        (folder / "digits_network.py").write_text((HERE / "digits_network.py").read_text())
        optimizer = {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
        spec = classifier(
            (1, 8, 8),
            {"epochs": 20, "optimizer": optimizer, "scheduler": "cosine"},
            model={"framework": "torch", "entrypoint": "digits_network:build"},
            data={"splits": "digits", "kwargs": {"batch_size": 64}},
        )
        return Case(name, spec, 40, 4, 5, (1, 8, 8))
    if name == "resnet20":
        (folder / "resnet20.py").write_text((SHARED / "models" / "resnet20.py").read_text())
        weights = str(SHARED / "models" / "resnet20_cifar10.safetensors")
        entry = {"entrypoint": "resnet20:build", "weights": weights}
        return Case(name, cifar(folder, entry, 0, 0.05), 12, 2, 3, (3, 32, 32))
    width = {"vgg11": 11, "vgg19": 19}[name]
    kwargs = {"model_name": f"vgg{width}", "dataset_name": "cifar10"}
    entry = {"entrypoint": "ingot.zoo:get_model_by_name", "kwargs": kwargs}
    full = 8 if width == 11 else 60
    return Case(name, cifar(folder, entry, full, 0.05), full, 2, 3, (3, 32, 32))


@contextmanager
def timed(minutes: dict[str, float], name: str) -> Iterator[None]:
    wall, cpu = time.monotonic(), time.process_time()
    yield
    minutes[name] = (time.process_time() - cpu) / 60
    minutes[f"{name} (wall)"] = (time.monotonic() - wall) / 60


def accuracy(problem: Problem, network: Any) -> float:
    loader = problem.split("test", "test")
    return evaluate_on(problem, network, loader)[0].metrics["accuracy"]


def train(problem: Problem, network: Any, epochs: int, rate: float = 1.0) -> Any:
    """Train a network in place, with the options that a step of our search has."""
    options = recovery_options(
        problem.spec,
        epochs,
        True,
        device=problem.device,
        seed=problem.seed,
        learning_rate_factor=rate,
    )
    train_network(training_only(problem), network, options)
    return network.eval()


def training_only(problem: Problem) -> Problem:
    found = copy.copy(problem)
    found.splits = {"train": problem.splits["train"]}
    return found


def parameters(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: Any, shape: tuple[int, int, int]) -> float:
    device = next(network.parameters()).device
    return float(tp.utils.count_ops_and_params(network, torch.randn(1, *shape, device=device))[0])


def prune_with_torch_pruning(network: Any, ratio: float, shape: tuple[int, int, int]) -> Any:
    """Prune by the magnitude of groups, globally: torch-pruning's own recipe."""
    pruned = copy.deepcopy(network).cpu()
    last = [layer for layer in pruned.modules() if isinstance(layer, torch.nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        pruned,
        torch.randn(1, *shape),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=0.95,
        ignored_layers=[last],
    )
    pruner.step()
    return pruned.to(next(network.parameters()).device)


def bisect(problem: Problem, network: Any, case: Case, start: float) -> tuple[Any, float]:
    """Return the smallest network of so many tries within delta, and its accuracy."""
    low, high = 0.0, 0.9
    best = (network, start)
    for number in range(case.tries):
        ratio = (low + high) / 2
        pruned = prune_with_torch_pruning(network, ratio, case.shape)
        left = case.epochs % case.tries if number == case.tries - 1 else 0
        # The learning rate that our search begins with, too.
        train(problem, pruned, case.epochs // case.tries + left, first_rate(problem.spec))
        value = accuracy(problem, pruned)
        kept = parameters(network) / parameters(pruned)
        print(f"  torch-pruning, try {number + 1}: ratio {ratio:.3f}, {kept:.2f}x, {value:.2f}")
        if start - value <= DELTA:
            low, best = ratio, (pruned, value)
        else:
            high = ratio
    return best


def run(name: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f"ingot-bench-{name}-"))
    found = case(name, folder)
    epochs = int(os.environ.get("INGOT_BENCH_EPOCHS", found.epochs))
    found = replace(found, epochs=epochs)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(found.spec))
    spec = load_spec(path)
    print(f"== {name}: {epochs} epochs for each")
    minutes: dict[str, float] = {}
    if spec.model.weights is None:
        result = ingot.train(path, folder / "trained")
        found.spec["model"]["weights"] = str(result.weights)
        path.write_text(yaml.safe_dump(found.spec))
    from ingot.training.hardware import choose_device

    problem = Problem(load_spec(path), choose_device(None))
    given = problem.load_network()
    first = accuracy(problem, given)
    with timed(minutes, "extra training of the reference"):
        extra = train(problem, problem.load_network(), epochs)
    second = accuracy(problem, extra)
    print(f"  reference {first:.2f}, after {epochs} epochs more {second:.2f}")
    reference = given if first >= second else extra
    start = max(first, second)
    weights = folder / "start.safetensors"
    from safetensors.torch import save_file

    save_file({k: v.cpu().contiguous() for k, v in reference.state_dict().items()}, weights)
    found.spec["model"]["weights"] = str(weights)
    path.write_text(yaml.safe_dump(found.spec))
    with timed(minutes, "ingot"):
        verdict = ingot.compress(
            path,
            output=folder / "run",
            finetune_epochs=found.step,
            max_evaluations=epochs // found.step + 4,
            max_seconds=1e9,
            progress=lambda line: print(f"  {line}") if line.startswith("trial") else None,
        )
    with timed(minutes, "torch-pruning"):
        other, value = bisect(problem, reference, found, start)
    assert verdict.optimized is not None
    assert verdict.epochs <= epochs
    before = parameters(reference)
    size, work = verdict.ratio("parameters") or 1.0, verdict.ratio("macs") or 1.0
    theirs = before / parameters(other)
    their_work = macs(reference, found.shape) / macs(other, found.shape)
    ours = verdict.optimized.metrics["accuracy"]
    print(f"  {'':16}{'accuracy':>10}{'parameters':>12}{'MACs':>8}{'CPU min':>10}{'wall min':>10}")
    for label, row in (
        ("ingot compress", (ours, size, work)),
        ("torch-pruning", (value, theirs, their_work)),
    ):
        key = "ingot" if label.startswith("ingot") else label
        print(
            f"  {label:16}{row[0]:10.2f}{row[1]:11.2f}x{row[2]:7.2f}x{minutes[key]:10.1f}"
            f"{minutes[f'{key} (wall)']:10.1f}"
        )
    phases = {name: round(seconds, 1) for name, seconds in verdict.phases.items()}
    total = max(1e-9, verdict.elapsed_seconds)
    share = phases.get("other", 0.0) / total
    print(
        f"  verdict {verdict.verdict}, drop {verdict.drop:.2f}; ratio of ratios {size / theirs:.2f}"
    )
    print(f"  seconds {phases} of {total:.0f}: {share:.1%} outside of training and evaluation,")
    print(f"  exports with their parity {phases.get('export', 0.0) / total:.1%}")
    if name in TARGET:
        reached = size if name == "digits" else size / theirs
        print(f"  target {TARGET[name]}: {'reached' if reached >= TARGET[name] else 'missed'}")


def main() -> None:
    logging.getLogger("ingot").setLevel(logging.ERROR)
    torch.manual_seed(0)
    for name in sys.argv[1:] or ["digits"]:
        if name != "digits" and not SHARED.is_dir():
            print(f"== {name}: skipped, as INGOT_SHARED has no CIFAR-10")
            continue
        run(name)


if __name__ == "__main__":
    main()
