"""``ingot compress`` against torch-pruning's own pruner, whose ratio is found by bisection.

Both start from the same trained network and get the same number of epochs in all; both are measured
on the same split, and both drops count from the better of the network that was given and that
network after as many epochs of further training. What counts is how many parameters are left.

    python benchmarks/bench_compress.py [digits] [resnet20] [vgg11] [vgg19]

``digits`` takes two minutes and is the default; the others take CIFAR-10 as images from
``INGOT_SHARED`` and hours on a CPU. ``INGOT_BENCH_EPOCHS`` changes the number of epochs, and
``INGOT_BENCH_IMAGES`` takes so many of the images to train on, and a quarter as many to test: a
recipe short enough for a CPU.
``INGOT_BENCH_FOLDER`` is where everything is kept: a benchmark that was ended goes on from there.
"""

from __future__ import annotations

import copy
import csv
import json
import logging
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
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
from ingot.training.hardware import choose_device
from ingot.training.problem import Problem
from ingot.training.torch_state import write_network
from ingot.training.train import train_network

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("INGOT_SHARED", HERE.parent.parent / "shared"))
IMAGES = int(os.environ["INGOT_BENCH_IMAGES"]) if "INGOT_BENCH_IMAGES" in os.environ else None
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
        if IMAGES is not None:  # names are sorted by class
            rows = rows[:: max(1, len(rows) // (IMAGES if split == "train" else IMAGES // 4))]
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
        return Case(name, cifar(folder, entry, 0, 0.05), 10, 5, 3, (3, 32, 32))
    width = {"vgg11": 11, "vgg19": 19}[name]
    kwargs = {"model_name": f"vgg{width}", "dataset_name": "cifar10"}
    entry = {"entrypoint": "ingot.zoo:get_model_by_name", "kwargs": kwargs}
    full = 8 if width == 11 else 60
    return Case(name, cifar(folder, entry, full, 0.05), full, 2, 3, (3, 32, 32))


def cpu_seconds() -> float:
    """Return what this process and those that it waited for have used."""
    return sum(os.times()[:4])


def once(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a part of the benchmark found, and its minutes; of its file if it has run."""
    if not path.is_file():
        wall, cpu = time.monotonic(), cpu_seconds()
        found = work()
        found["cpu"] = (cpu_seconds() - cpu) / 60
        found["wall"] = (time.monotonic() - wall) / 60
        path.write_text(json.dumps(found, indent=1))
    result: dict[str, Any] = json.loads(path.read_text())
    return result


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


def better_reference(spec_path: Path, found: Case) -> dict[str, Any]:
    """Return the better of the network that was given and that after as many epochs more."""
    problem = Problem(load_spec(spec_path), choose_device(None))
    given = problem.load_network()
    first = accuracy(problem, given)
    extra = train(problem, problem.load_network(), found.epochs)
    second = accuracy(problem, extra)
    weights = spec_path.parent / "start.safetensors"
    write_network(weights, (given if first >= second else extra).state_dict())
    return {"given": first, "extra": second, "weights": str(weights)}


def bisect(problem: Problem, found: Case, start: float) -> dict[str, Any]:
    """Find the smallest network of so many tries within delta, with torch-pruning."""
    network = problem.load_network()
    low, high = 0.0, 0.9
    best, value = network, start
    for number in range(found.tries):
        ratio = (low + high) / 2
        pruned = prune_with_torch_pruning(network, ratio, found.shape)
        left = found.epochs % found.tries if number == found.tries - 1 else 0
        epochs = found.epochs // found.tries + left
        # The learning rate that our search would begin with.
        train(problem, pruned, epochs, first_rate(problem.spec, epochs))
        reached = accuracy(problem, pruned)
        fewer = parameters(network) / parameters(pruned)
        print(f"  torch-pruning, try {number + 1}: ratio {ratio:.3f}, {fewer:.2f}x, {reached:.2f}")
        if start - reached <= DELTA:
            low, best, value = ratio, pruned, reached
        else:
            high = ratio
    return {
        "accuracy": value,
        "parameters": parameters(network) / parameters(best),
        "macs": macs(network, found.shape) / macs(best, found.shape),
    }


def compress(path: Path, found: Case, output: Path) -> dict[str, Any]:
    """Search with as many epochs, and return what of the verdict is printed."""
    verdict = ingot.compress(
        path,
        output=output,
        resume=output.is_dir(),
        finetune_epochs=found.step,
        max_evaluations=found.epochs // found.step + 4,
        max_seconds=1e9,
        progress=lambda line: print(f"  {line}") if line.startswith("trial") else None,
    )
    assert verdict.optimized is not None
    assert verdict.epochs <= found.epochs
    return {
        "accuracy": verdict.optimized.metrics["accuracy"],
        "parameters": verdict.ratio("parameters") or 1.0,
        "macs": verdict.ratio("macs") or 1.0,
        "verdict": verdict.verdict,
        "drop": verdict.drop,
        "interval": verdict.drop_interval,
        "epochs": verdict.epochs,
        "phases": dict(verdict.phases),
        "seconds": verdict.elapsed_seconds,
    }


def run(name: str) -> None:
    kept = os.environ.get("INGOT_BENCH_FOLDER")
    folder = Path(kept, name) if kept else Path(tempfile.mkdtemp(prefix=f"ingot-bench-{name}-"))
    folder.mkdir(parents=True, exist_ok=True)
    found = case(name, folder)
    epochs = int(os.environ.get("INGOT_BENCH_EPOCHS", found.epochs))
    found = replace(found, epochs=epochs)
    path = folder / f"{name}.yaml"
    model = found.spec["model"]
    path.write_text(yaml.safe_dump(found.spec))
    print(f"== {name}: {epochs} epochs for each")
    if "weights" not in model:
        model["weights"] = once(
            folder / "trained.json",
            lambda: {"weights": str(ingot.train(path, folder / "trained").weights)},
        )["weights"]
        path.write_text(yaml.safe_dump(found.spec))
    reference = once(folder / "reference.json", lambda: better_reference(path, found))
    start = max(reference["given"], reference["extra"])
    print(f"  reference {reference['given']:.2f}, after {epochs} epochs more", end=" ")
    print(f"{reference['extra']:.2f} ({reference['cpu']:.1f} CPU minutes)")
    model["weights"] = reference["weights"]
    path.write_text(yaml.safe_dump(found.spec))
    problem = Problem(load_spec(path), choose_device(None))
    theirs = once(folder / "torch-pruning.json", lambda: bisect(problem, found, start))
    ours = once(folder / "ingot.json", lambda: compress(path, found, folder / "run"))
    print(f"  {'':16}{'accuracy':>10}{'parameters':>12}{'MACs':>8}{'CPU min':>10}{'wall min':>10}")
    for label, row in (("ingot compress", ours), ("torch-pruning", theirs)):
        print(
            f"  {label:16}{row['accuracy']:10.2f}{row['parameters']:11.2f}x{row['macs']:7.2f}x"
            f"{row['cpu']:10.1f}{row['wall']:10.1f}"
        )
    low, high = ours["interval"] or (float("nan"), float("nan"))
    ratio = ours["parameters"] / theirs["parameters"]
    print(
        f"  verdict {ours['verdict']}, drop {ours['drop']:.2f} (95% interval {low:.2f} to", end=" "
    )
    print(f"{high:.2f}) after {ours['epochs']} epochs; ratio of ratios {ratio:.2f}")
    total = max(1e-9, ours["seconds"])
    phases = {phase: round(seconds, 1) for phase, seconds in ours["phases"].items()}
    share = phases.get("other", 0.0) / total
    print(f"  seconds {phases} of {total:.0f}: {share:.1%} outside of training and evaluation,")
    print(f"  exports with their parity {phases.get('export', 0.0) / total:.1%}")
    if name in TARGET:
        reached = ours["parameters"] if name == "digits" else ratio
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
