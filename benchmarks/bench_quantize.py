"""``ingot quantize`` against NNCF, int8 against float32 in ONNX Runtime, and ``ingot optimize``.

    python benchmarks/bench_quantize.py [PART]...

Parts ``digits`` and ``digits-depthwise`` (the default, with ``speed``), ``digits-mobilenet_v2``,
``resnet20``, ``vgg11`` and ``mobilenet_v2`` quantize one ONNX file with both tools, with the same
samples to calibrate on and to evaluate on, for a delta of 0.5 and of 0.1: whole processes, one
thread each; every sample that goes through the evaluation function is counted, and all files are
measured by one function at the end. NNCF lives in an environment of its own: ``INGOT_NNCF_PYTHON``
is the path of its Python. Where the first candidate is within delta, both evaluate the reference
and that one, and nothing is left to save.

``speed`` times the int8 files of a ResNet-18 (224 pixels) and of ResNet-20. ``mixed`` quantizes
ResNet-20 to 2, 4 and 8 bits with training. ``optimize`` and ``optimize-resnet20`` compare
``ingot optimize`` with ``compress`` and ``quantize`` alone; ``INGOT_BENCH_BITS`` (``mixed``) are
the bits of the latter two.

CIFAR-10 and ResNet-20 come from ``INGOT_SHARED``. ``INGOT_BENCH_EPOCHS`` is for how long VGG-11 and
MobileNetV2 are trained first, ``INGOT_BENCH_FOLDER`` where that is kept, ``INGOT_BENCH_DELTAS`` and
``INGOT_BENCH_TIME`` (``25m``) change the deltas and end a search with training.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import yaml
from measure import Row, print_table, quotient

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("INGOT_SHARED", HERE.parent.parent / "shared"))
NNCF_PYTHON = os.environ.get("INGOT_NNCF_PYTHON")
DELTAS = tuple(map(float, os.environ.get("INGOT_BENCH_DELTAS", "0.5 0.1").split()))
BITS = os.environ.get("INGOT_BENCH_BITS", "mixed")
CALIBRATION = 256
TIME_TARGET = SAMPLES_TARGET = 0.25
SPEED_TARGETS = {"resnet18": 2.8, "resnet20": 1.8}
SIZE_TARGET, MIXED_TARGET, OPTIMIZE_TARGET = 3.8, 8.0, 1.5
DATA_CODE = """
import numpy as np
import torch
from torch import nn

from ingot.training.data import ArrayInputter
from ingot.zoo.digits import load_digits

def loaders():
    # 1,200 images to train on, and 597.
    parts = [load_digits(split) for split in ("train", "test")]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    options = {"batch_size": 64, "convert": torch.from_numpy}
    return {
        "train": ArrayInputter((images[:1200], labels[:1200]), shuffle=True, **options),
        "test": ArrayInputter((images[1200:], labels[1200:]), **options),
    }

"""
NETWORKS = {
    "digits": """
def build(widths=(16,) * 4 + (32,) * 4 + (64,) * 5):
    # 13 convolutions, with batch normalization.
    layers, width = [], 1
    for index, wider in enumerate(widths):
        stride = 2 if wider > width > 1 else 1
        layers += [nn.Conv2d(width, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider)]
        layers += [nn.ReLU()]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
""",
    "digits-depthwise": (HERE / "digits_network.py").read_text(),
    "digits-mobilenet_v2": """
from ingot.zoo import get_model_by_name

def build():
    return get_model_by_name("mobilenet_v2", "digits")
""",
}
INGOT = "import sys; from ingot.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Process:
    """What a process took: wall and CPU seconds, and what it printed."""

    wall: float
    cpu: float
    output: str


def run(*command: str | Path, ok: Sequence[int] = (0,), **variables: str) -> Process:
    """Run a process to its end, in turn with nothing else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in ok:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Process(wall, used, done.stdout)


def search(*arguments: str | Path, **variables: str) -> tuple[Process, dict[str, Any]]:
    """Run a search; return its process, and its verdict, which may be a missed one."""
    found = run(sys.executable, "-P", "-c", INGOT, *arguments, "--json", ok=(0, 3), **variables)
    return found, json.loads(found.output)


def artifact(verdict: Mapping[str, Any], which: str = "artifacts") -> Path:
    """Return the ONNX file of a verdict."""
    return next(Path(item["path"]) for item in verdict[which] if item["format"] == "onnx")


def accuracy(path: Path, arrays: Mapping[str, Any]) -> float:
    """Return the top-1 accuracy of a file in percent: the one ruler for every contender."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images, labels = arrays["images"], arrays["labels"]
    parts = np.array_split(np.arange(len(images)), max(1, len(images) // 64))
    hits = [session.run(None, {name: images[part]})[0].argmax(1) == labels[part] for part in parts]
    return 100 * float(np.concatenate(hits).mean())


# Against NNCF ---------------------------------------------------------------------------------


def trained_spec(name: str, folder: Path) -> Path:
    """Write the spec of a network, train it where it has no weights, and return the spec."""
    from bench_compress import case, classifier

    import ingot

    if name.startswith("digits"):
        (folder / "net.py").write_text(DATA_CODE + NETWORKS[name])
        optimizer = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
        spec = classifier(
            (1, 8, 8),
            {"epochs": 10, "optimizer": optimizer, "scheduler": "cosine"},
            model={"framework": "torch", "entrypoint": "net:build"},
            data={"splits": "net:loaders"},
        )
    elif name == "mobilenet_v2":
        spec = case("vgg11", folder).spec
        spec["model"]["kwargs"]["model_name"] = name
    else:
        spec = case(name, folder).spec
    epochs = os.environ.get("INGOT_BENCH_EPOCHS")
    if epochs and name in ("vgg11", "mobilenet_v2"):
        spec["full_trainer"]["epochs"] = int(epochs)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    if "weights" not in spec["model"]:
        output = folder / "trained"
        weights = output / "weights.safetensors"
        if not weights.is_file():
            print(f"  training {name} for {spec['full_trainer']['epochs']} epochs", flush=True)
            weights = Path(ingot.train(path, output).weights)
        spec["model"]["weights"] = str(weights)
        path.write_text(yaml.safe_dump(spec))
    return path


def write_case(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a network as ONNX, its arrays and a spec of both; return the ONNX file and the spec."""
    import ingot
    from ingot.specs import load_spec
    from ingot.training.problem import Problem

    spec = load_spec(trained_spec(name, folder))
    place = folder / "onnx"
    place.mkdir(exist_ok=True)
    model = place / "model.onnx"
    if not model.is_file():
        made = ingot.export(spec, "onnx", place / "export", mode="dynamic", force=True)
        shutil.copyfile(made.artifacts[0].path, model)
    if not (place / "arrays.npz").is_file():
        problem = Problem(spec)
        train: Any = problem.splits["train"]
        train.augmenter = None
        few = islice(train, -(-CALIBRATION // train.batch_size))
        images, labels = zip(*problem.splits["test"], strict=True)
        np.savez(
            place / "arrays.npz",
            calibration=np.concatenate([batch[0] for batch in few])[:CALIBRATION],
            images=np.concatenate(images),
            labels=np.concatenate(labels),
        )
    (place / "quantize_arrays.py").write_text((HERE / "quantize_arrays.py").read_text())
    shape = ["batch", *np.load(place / "arrays.npz")["images"].shape[1:]]
    path = place / f"{name}.yaml"
    document = {
        "name": name,
        "model": {"framework": "onnx", "file": "model.onnx"},
        "inputs": [{"name": "image", "dtype": "float32", "shape": shape}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        "data": {"splits": "quantize_arrays:loaders"},
        "evaluation": {"function": "quantize_arrays:accuracy", "eval_key": "accuracy"},
        "optimization": {"mode": "quantization"},
    }
    path.write_text(yaml.safe_dump(document))
    return model, path


def against_nncf(name: str, folder: Path) -> list[Row]:
    """Quantize one file with both, for each delta."""
    if NNCF_PYTHON is None:
        print(f"== {name}: skipped, as INGOT_NNCF_PYTHON names no Python that has NNCF")
        return []
    model, spec = write_case(name, folder)
    arrays = np.load(model.with_name("arrays.npz"))
    before, bytes_before = accuracy(model, arrays), model.stat().st_size
    print(f"== {name}: {before:.2f} % of {len(arrays['labels'])}, {bytes_before} bytes", flush=True)
    rows = []
    for delta in DELTAS:
        count = model.with_name("count.txt")
        count.write_text("")
        ours, verdict = search(
            "quantize", spec, "--delta", str(delta), "--fresh", "-o", folder / f"run-{delta}",
            INGOT_BENCH_COUNT=str(count),
        )  # fmt: skip
        mine = artifact(verdict)
        theirs_path = folder / f"nncf-{delta}.onnx"
        theirs = run(
            NNCF_PYTHON, HERE / "nncf_contender.py", model, model.with_name("arrays.npz"),
            str(delta), theirs_path,
        )  # fmt: skip
        samples = json.loads(theirs.output.splitlines()[-1])["samples"]
        counted = sum(map(int, count.read_text().split()))
        drops = [before - accuracy(path, arrays) for path in (mine, theirs_path)]
        sizes = [path.stat().st_size for path in (mine, theirs_path)]
        what = f"{name}, delta {delta:g}"
        rows += [
            quotient(f"{what}: wall time", ours.wall, theirs.wall, "s", TIME_TARGET),
            quotient(f"{what}: CPU time", ours.cpu, theirs.cpu, "s"),
            quotient(f"{what}: samples", counted / 1e3, samples / 1e3, "k", SAMPLES_TARGET),
            quotient(f"{what}: bytes", sizes[0] / 1e3, sizes[1] / 1e3, "kB", 1.0),
            no_worse(f"{what}: drop ({verdict['verdict']})", drops, delta),
        ]
        print_table(rows[-5:])
    return rows


def no_worse(what: str, drops: Sequence[float], delta: float) -> Row:
    """Return the row of two drops; ours is fine within delta, or when it is no more than theirs."""
    ours, theirs = drops
    ok = ours <= max(delta, theirs) + 1e-9
    limit = f"<= {delta:g}, or theirs"
    return Row(what, f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}", limit, ok)


# Speed ----------------------------------------------------------------------------------------


def speed(folder: Path) -> list[Row]:
    """Time int8 files beside float32 ones in ONNX Runtime, and compare their sizes."""
    from ingot.optimizers.latency import compare_latency

    files = {"resnet18": resnet18(folder)}
    if SHARED.is_dir():
        files["resnet20"] = resnet20(folder)
    else:
        print("== speed of ResNet-20: skipped, as INGOT_SHARED has none")
    rows = []
    for name, (before, after, shape) in files.items():
        best = 0.0
        for threads in (1, 2):
            if threads > len(os.sched_getaffinity(0)) or (threads > 1 and os.getloadavg()[0] > 1.5):
                print(f"== {name}, {threads} threads: skipped, as the cores are not free")
                continue
            for batch in (1,) if name == "resnet18" else (1, 8, 32):
                feeds = {"image": np.random.default_rng(0).random((batch, *shape), np.float32)}
                times = compare_latency(before, after, feeds, threads)
                what = f"{name}, batch {batch}, {threads} thread{'s' * (threads > 1)}: speed-up"
                limit = SPEED_TARGETS[name] if name == "resnet18" else None
                measured = (times.reference_ms, times.candidate_ms, "ms", limit)
                rows.append(gain(what, *measured, ratio=1 / times.ratio))
                best = max(best, 1 / times.ratio)
        if name == "resnet20":
            limit = SPEED_TARGETS[name]
            ok = best >= limit
            rows.append(Row(f"{name}, best batch", "", "", f"{best:.2f}", f">= {limit:g}", ok))
        sizes = [path.stat().st_size / 1e6 for path in (before, after)]
        limit = SIZE_TARGET if name == "resnet18" else None
        rows.append(gain(f"{name}: size", sizes[0], sizes[1], "MB", limit))
    print_table(rows)
    return rows


def gain(
    what: str,
    before: float,
    after: float,
    unit: str,
    target: float | None = None,
    ratio: float | None = None,
) -> Row:
    """Return the row of ``before / after``, or of a better figure of it, and its least value."""
    ratio = before / after if ratio is None else ratio
    limit, ok = ("", None) if target is None else (f">= {target:g}", ratio >= target)
    return Row(what, f"{after:.3g} {unit}", f"{before:.3g} {unit}", f"{ratio:.2f}", limit, ok)


def resnet18(folder: Path) -> tuple[Path, Path, tuple[int, ...]]:
    """Quantize a ResNet-18 without training: speed and size do not depend on its weights."""
    import ingot

    (folder / "net.py").write_text(
        "import torch\nfrom ingot.zoo import get_model_by_name\n\n\ndef build():\n"
        "    torch.manual_seed(0)\n    return get_model_by_name('resnet18', 'imagenet')\n"
    )
    document = {
        "name": "resnet18",
        "model": {"framework": "torch", "entrypoint": "net:build"},
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 1000]}],
    }
    spec = folder / "resnet18.yaml"
    spec.write_text(yaml.safe_dump(document))
    made = ingot.export(spec, "onnx", folder / "export", mode="dynamic", force=True)
    images = np.random.default_rng(0).standard_normal((48, 3, 224, 224), np.float32)
    np.savez(folder / "images.npz", image=images)
    _, verdict = search(
        "quantize", made.artifacts[0].path, "--data", folder / "images.npz", "--delta", "50",
        "--fresh", "-o", folder / "run-resnet18",
    )  # fmt: skip
    return artifact(verdict, "reference_artifacts"), artifact(verdict), (3, 224, 224)


def resnet20(folder: Path) -> tuple[Path, Path, tuple[int, ...]]:
    """Quantize the trained ResNet-20."""
    place = folder / "resnet20"
    place.mkdir(exist_ok=True)
    _, spec = write_case("resnet20", place)
    _, verdict = search(
        "quantize", spec, "--delta", "0.5", "--fresh", "-o", place / "run",
        INGOT_BENCH_COUNT=os.devnull,
    )  # fmt: skip
    return artifact(verdict, "reference_artifacts"), artifact(verdict), (3, 32, 32)


# Fewer bits, and pruning ----------------------------------------------------------------------


def mixed(folder: Path) -> list[Row]:
    """Quantize ResNet-20 to 2 bits with training, and more where delta asks for it."""
    if not SHARED.is_dir():
        print("== mixed: skipped, as INGOT_SHARED has no ResNet-20")
        return []
    spec = trained_spec("resnet20", folder)
    process, verdict = search(
        "quantize", spec, "--bits", "2", "--layer", "stem=8", "--layer", "fc=8", "--delta", "1",
        "--finetune-epochs", "2", "--max-time", os.environ.get("INGOT_BENCH_TIME", "1h"),
        "--fresh", "-o", folder / "run-mixed",
    )  # fmt: skip
    before = artifact(verdict, "reference_artifacts").stat().st_size
    after = artifact(verdict).stat().st_size
    drop = verdict["drop"]
    rows = [
        gain("resnet20, 2 to 8 bits, trained: size", before / 1e3, after / 1e3, "kB", MIXED_TARGET),
        Row("the same: drop", f"{drop:.2f}", "0", f"{drop:+.2f}", "<= 1", drop <= 1),
    ]
    print_table(rows)
    print(
        f"{verdict['verdict']} after {verdict['epochs']:g} epochs, {process.wall / 60:.0f} minutes"
    )
    return rows


def optimize(name: str, folder: Path) -> list[Row]:
    """Compare the bytes of ``optimize`` with those of its two halves alone, at one delta."""
    if name != "digits" and not SHARED.is_dir():
        print(f"== optimize {name}: skipped, as INGOT_SHARED has no CIFAR-10")
        return []
    from bench_compress import DELTA, case

    import ingot

    found = case(name, folder)
    spec = folder / f"{name}.yaml"
    spec.write_text(yaml.safe_dump(found.spec))
    if "weights" not in found.spec["model"]:
        weights = folder / "trained" / "weights.safetensors"
        if not weights.is_file():
            ingot.train(spec, weights.parent)
        found.spec["model"]["weights"] = str(weights)
        spec.write_text(yaml.safe_dump(found.spec))
    most = ("--max-time", os.environ.get("INGOT_BENCH_TIME", "1h"))
    epochs = ("--finetune-epochs", str(found.step))
    size, told = {}, {}
    for command, more in {
        "compress": (*epochs, "--format", "onnx"),
        "quantize": (*epochs, "--bits", BITS),
        "optimize": (*epochs, "--bits", BITS),
    }.items():
        output = folder / f"run-{command}"
        shutil.rmtree(output, ignore_errors=True)
        process, verdict = search(
            command, spec, "--delta", f"{DELTA:g}", *more, *most, "-o", output
        )
        size[command] = artifact(verdict).stat().st_size / 1e3
        before = artifact(verdict, "reference_artifacts").stat().st_size / 1e3
        told[command] = f"{verdict['verdict']}, drop {verdict['drop']:.2f}"
        print(
            f"  {command}: {before:.1f} to {size[command]:.1f} kB, {told[command]},"
            f" {process.wall:.0f} s"
        )
    rows = [
        gain(
            f"{name}: bytes of optimize, against {other} alone",
            size[other],
            size["optimize"],
            "kB",
            OPTIMIZE_TARGET,
        )
        for other in ("compress", "quantize")
    ]
    print_table(rows)
    return rows


def main() -> None:
    """Run the parts that are named, and print the tables."""
    kept = os.environ.get("INGOT_BENCH_FOLDER")
    whole = Path(kept or tempfile.mkdtemp(prefix="ingot-bench-quantize-"))
    for part in sys.argv[1:] or ("digits", "digits-depthwise", "speed"):
        folder = whole / f"quantize-{part}"
        folder.mkdir(parents=True, exist_ok=True)
        if part == "speed":
            speed(folder)
        elif part == "mixed":
            mixed(folder)
        elif part in ("optimize", "optimize-resnet20", "optimize-vgg11"):
            optimize(part.partition("-")[2] or "digits", folder)
        elif part not in NETWORKS and not SHARED.is_dir():
            print(f"== {part}: skipped, as INGOT_SHARED has no CIFAR-10")
        else:
            against_nncf(part, folder)


if __name__ == "__main__":
    main()
