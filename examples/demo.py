"""Train a digits classifier, package, run and verify it four ways, compress and quantize it.

    python examples/demo.py [FOLDER]

Everything lands in FOLDER (default: demo), which is made anew. Each step is an ``ingot`` command,
or the training script of examples/digits, run as you would run it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

EXAMPLE = Path(__file__).parent / "digits"
FORMS = {
    "pytorch": "PyTorch code",
    "torchscript": "TorchScript",
    "keras": "Keras",
    "onnx": "ONNX",
}
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    # Keras would write a configuration file into the home folder.
    "KERAS_HOME": os.path.join(os.devnull, "keras"),
}


def run(console: Console, folder: Path, *command: str) -> str:
    """Run a command in the folder, show it, and return what it printed."""
    shown = " ".join(["python" if part == sys.executable else part for part in command])
    shown = shown.replace("python -m ingot.cli", "ingot")
    console.print(f"[cyan]$ {shown}[/]", highlight=False, soft_wrap=True)
    process = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        sys.exit(f"{shown} failed with status {process.returncode}:\n{process.stderr}")
    return process.stdout


def comparison(folder: Path) -> Table:
    """Return the reference beside what each search has made of it, from their verdicts."""
    places = {"compressed": "both/compress", "quantized": "quantized", "both": "both"}
    verdicts = {
        name: json.loads((folder / place / "verdict.json").read_text())
        for name, place in places.items()
    }
    found = {"reference": verdicts["both"]["reference"]}
    found |= {name: verdict["optimized"] for name, verdict in verdicts.items()}
    table = Table(title="One delta, three ways")
    for column in ("model", "accuracy", "bytes", "smaller", "parameters", "operations"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, measured in found.items():
        table.add_row(
            name,
            f"{measured['metrics']['accuracy']:.2f} %",
            f"{measured['size_bytes']:,}",
            f"{found['reference']['size_bytes'] / measured['size_bytes']:.2f}x",
            f"{measured['parameters']:,}",
            f"{measured['macs']:,}",
        )
    return table


def main(folder: Path) -> None:
    console = Console()
    started = time.perf_counter()
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    ingot = (sys.executable, "-m", "ingot.cli")

    console.rule("1. train a small CNN on 1,437 handwritten digits")
    print(run(console, folder, sys.executable, "train.py", ".").strip().splitlines()[-1])

    console.rule("2. package it four ways; each package is tested before it is put in place")
    for form in FORMS:
        run(console, folder, *ingot, "package", f"{form}.yaml", "-o", f"{form}.ingot", "--quiet")

    console.rule("3. run all four on 360 test images, and verify them")
    labels = np.load(folder / "test_labels.npy")
    reference = None
    table = Table(title="One network, four frameworks, one way to run it")
    for column in ("package", "size", "accuracy", "max difference", "batch of 1", "verified"):
        table.add_column(column, justify="left" if column == "package" else "right")
    for form, title in FORMS.items():
        trust = ["--trust-code"] if form == "pytorch" else []
        package = f"{form}.ingot"
        out = f"{form}.npz"
        test = ("--inputs", "test.npz", "--batch-size", "90", "-o", out)
        run(console, folder, *ingot, "infer", package, *test, *trust)
        one = ("-i", "image=one.npy", "--repeat", "200", "--warmup", "20", "--threads", "1")
        np.save(folder / "one.npy", np.load(folder / "golden.npz")["image"][:1])
        timed = json.loads(run(console, folder, *ingot, "infer", package, *one, "--json", *trust))
        checks = json.loads(run(console, folder, *ingot, "verify", package, "--json", *trust))
        logits = np.load(folder / out)["logits"]
        reference = logits if reference is None else reference
        table.add_row(
            title,
            f"{(folder / package).stat().st_size / 1024:.1f} KiB",
            f"{100 * (logits.argmax(1) == labels).mean():.2f} %",
            f"{np.abs(logits - reference).max():.1e}",
            f"{1000 * timed['timing']['median_ms']:.0f} us",
            f"{sum(check['status'] == 'pass' for check in checks['checks'])}"
            f"/{len(checks['checks'])} checks",
        )
    console.print(table)

    console.rule("4. compress it: as small as one point of accuracy on the test images allows")
    most = ("--max-evaluations", "12")
    search = ("compress", "compress.yaml", "-o", "both/compress", *most, "--quiet")
    print(run(console, folder, *ingot, *search))

    console.rule("5. measure that promise again, on the package that would ship")
    shipped = ("both/compress/opt_model.ingot", "--delta", "--spec", "compress.yaml")
    print(run(console, folder, *ingot, "verify", *shipped, "--trust-code"))

    console.rule("6. quantize it to 8 bits, within the same point")
    search = ("quantize", "compress.yaml", "-o", "quantized", "--quiet")
    print(run(console, folder, *ingot, *search))

    console.rule("7. both: quantize what pruning left, within that one point for the two of them")
    search = ("optimize", "compress.yaml", "-o", "both", "--resume", *most, "--quiet")
    print(run(console, folder, *ingot, *search))
    console.print(comparison(folder))

    console.rule("8. run the package of the result on the 360 test images")
    test = ("--inputs", "test.npz", "--batch-size", "90", "-o", "both.npz")
    run(console, folder, *ingot, "infer", "both/opt_model.ingot", *test)
    right = np.load(folder / "both.npz")["logits"].argmax(1) == labels
    print(f"accuracy {100 * right.mean():.2f} %\n")
    console.print(
        f"Done in {time.perf_counter() - started:.0f} s. The packages are in {folder}/; try\n"
        f"  .venv/bin/ingot inspect {folder}/onnx.ingot\n"
        f"  .venv/bin/ingot runs show {folder}/both/compress",
        highlight=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
