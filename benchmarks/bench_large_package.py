"""Packages and verifies a gigabyte of weights: peak memory and time, against copying and hashing.

Memory is the peak of the process that runs ``ingot package`` or ``ingot verify``, less that of a
Python that imports nothing. The processes that load the model to test it, before and after
packaging, are not counted, in memory or in time; a row without a target adds their time. Packaging
may take 1.5 times, verifying 1.2 times, what the standard library needs for the same bytes: to copy
the file, sync it (Ingot syncs its package as well) and hash it with ``hashlib.file_digest``, and
only to hash it. Verifying is measured twice: as the command ``ingot verify --no-golden``, whose
start is counted, and as a call in a warm process.

Set ``INGOT_BENCH_BYTES`` for another size. It takes about five times that in the temporary folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from measure import Row, difference, print_table, quotient, seconds_of, take_turns

SIZE = int(os.environ.get("INGOT_BENCH_BYTES", 10**9)) // 4096 * 4096
ROUNDS = 3
MIB = 1 << 20
MEMORY_TARGET_MIB = 300.0
PACKAGE_TARGET, VERIFY_TARGET = 1.5, 1.2

PYTHON_CODE = """
import os

def build(data_root):
    size = os.path.getsize(os.path.join(data_root, "weights.bin"))
    return lambda x: {"y": x + size}
"""
PYTHON_SPEC = """
name: large_python
model:
  framework: python
  entrypoint: large_code:build
  data_paths: [{path: weights.bin, packaged_name: weights.bin}]
inputs: [{name: x, dtype: int64, shape: [n]}]
outputs: [{name: y, dtype: int64, shape: [n]}]
"""
TORCH_CODE = """
import torch

class Model(torch.nn.Module):
    def __init__(self, count):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(count))

    def forward(self, x):
        return x + self.weight[: x.shape[0]]

def build(data_root, count):
    return Model(count)
"""
TORCH_SPEC = """
name: large_torch
model:
  framework: torch
  entrypoint: large_net:build
  kwargs: {{count: {count}}}
  weights: weights.safetensors
inputs: [{{name: x, dtype: float32, shape: [n]}}]
outputs: [{{name: y, dtype: float32, shape: [n]}}]
"""
# Runs a command line in its own process, and tells its peak memory and the seconds in which it
# waited for processes that run the model: its source, and the finished package.
RUN_CLI = """
import json, resource, sys, time

tested = 0.0
if sys.argv[1:]:
    import ingot.runtime.child as child

    ask = child._ask

    def timed(*arguments):
        global tested
        started = time.perf_counter()
        try:
            return ask(*arguments)
        finally:
            tested += time.perf_counter() - started

    child._ask = timed
    from ingot.cli.app import run

    code = run(sys.argv[1:])
    if code:
        sys.exit(code)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([peak, tested]), file=sys.stderr)
"""
# Writes a package around one file: only the archive, without the rest of the command.
RUN_WRITER = """
import sys
from pathlib import Path
from ingot.runtime.archive import PackageWriter

with PackageWriter(Path(sys.argv[2]), force=True) as writer:
    writer.add_file("0/data/weights", Path(sys.argv[1]))
    writer.write()
    writer.commit()
"""
# Verifies one package in a warm process, and tells the seconds that it took.
RUN_VERIFY = """
import sys, time
import ingot.runtime.package
from ingot.commands.verify import verify

started = time.perf_counter()
result = verify(sys.argv[1], golden=False)
print(time.perf_counter() - started)
sys.exit(result.exit_code)
"""


@dataclass(frozen=True)
class Measured:
    """What one process took.

    Attributes:
        seconds: from the start of the interpreter to its end.
        tested: seconds of it in which it waited for processes that run the model.
        peak_mib: its peak resident memory, without its children.
    """

    seconds: float
    tested: float
    peak_mib: float


def run_cli(*arguments: str, folder: Path) -> Measured:
    """Run ``ingot`` with these arguments in a process of its own; none gives a bare interpreter."""
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", RUN_CLI, *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"ingot {' '.join(arguments)} failed:\n{process.stderr}")
    peak, tested = json.loads(process.stderr.splitlines()[-1])
    return Measured(seconds, tested, peak / (MIB if sys.platform == "darwin" else 1024))


def write_sources(folder: Path) -> dict[str, Path]:
    """Write two specs and their weights; return the file of weights by name of the spec."""
    (folder / "large_code.py").write_text(PYTHON_CODE)
    (folder / "large_python.yaml").write_text(PYTHON_SPEC)
    with open(folder / "weights.bin", "wb") as file:
        write_random(file.write)
    count = SIZE // 4
    (folder / "large_net.py").write_text(TORCH_CODE)
    (folder / "large_torch.yaml").write_text(TORCH_SPEC.format(count=count))
    entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, SIZE]}
    header = json.dumps({"weight": entry}).encode()
    header += b" " * (-len(header) % 8)
    with open(folder / "weights.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        write_random(file.write)
    os.sync()  # what is still to be written would slow down whatever is measured first
    return {
        "large_python": folder / "weights.bin",
        "large_torch": folder / "weights.safetensors",
    }


def write_random(write: Callable[[bytes], object]) -> None:
    """Write SIZE bytes that do not compress."""
    for start in range(0, SIZE, MIB):
        write(os.urandom(min(MIB, SIZE - start)))


def hash_file(path: Path) -> str:
    """Hash a file as the standard library does it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_sync_hash(source: Path, target: Path) -> None:
    """Copy a file, sync the copy, and hash it."""
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())
    hash_file(target)
    target.unlink()


def measure_spec(folder: Path, name: str, weights: Path, bare: float) -> list[Row]:
    """Package and verify one spec, in turns with the standard library's copying and hashing."""
    package = folder / f"{name}.ingot"
    archive = folder / "archive.ingot"
    peaks: dict[str, list[float]] = {"package": [], "verify": []}
    tested: list[float] = []

    def packaging() -> float:
        package.unlink(missing_ok=True)
        found = run_cli("package", f"{name}.yaml", folder=folder)
        peaks["package"].append(found.peak_mib)
        tested.append(found.tested)
        return found.seconds - found.tested

    def verifying() -> float:
        found = run_cli("verify", str(package), "--no-golden", folder=folder)
        peaks["verify"].append(found.peak_mib)
        return found.seconds

    def writing() -> float:
        command = [sys.executable, "-c", RUN_WRITER, str(weights), str(archive)]
        seconds = seconds_of(lambda: subprocess.run(command, check=True))()
        archive.unlink()
        return seconds

    def verifying_warm() -> float:
        command = [sys.executable, "-c", RUN_VERIFY, str(package)]
        return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    seconds = take_turns(
        {
            "copy": seconds_of(lambda: copy_sync_hash(weights, folder / "copy.bin")),
            "write": writing,
            "package": packaging,
            "hash": seconds_of(lambda: hash_file(weights)),
            "verify": verifying,
            "verify warm": verifying_warm,
        },
        ROUNDS,
    )
    copy, digest = seconds["copy"], seconds["hash"]
    test = median(tested)
    package.unlink()
    memory = {key: max(values) for key, values in peaks.items()}
    return [
        difference(f"{name}: package, peak", memory["package"], bare, "MiB", MEMORY_TARGET_MIB),
        difference(f"{name}: verify, peak", memory["verify"], bare, "MiB", MEMORY_TARGET_MIB),
        quotient(f"{name}: package", seconds["package"], copy, "s", PACKAGE_TARGET),
        quotient(f"{name}: package and its tests", seconds["package"] + test, copy, "s"),
        quotient(f"{name}: archive alone", seconds["write"], copy, "s"),
        quotient(f"{name}: verify, command", seconds["verify"], digest, "s", VERIFY_TARGET),
        quotient(f"{name}: verify, warm", seconds["verify warm"], digest, "s", VERIFY_TARGET),
    ]


def main() -> None:
    needed = 5 * SIZE
    with tempfile.TemporaryDirectory(prefix="ingot-bench-") as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < needed:
            sys.exit(f"{folder}: expected {needed / 1e9:.1f} GB of free space")
        bare = run_cli(folder=folder).peak_mib
        rows = []
        for spec, weights in write_sources(folder).items():
            rows += measure_spec(folder, spec, weights, bare)
    print_table(rows)
    print(
        f"{SIZE / 1e9:.3g} GB of random weights, medians of {ROUNDS} rounds; alternatives: a bare"
        " interpreter (peak); copyfile, fsync and file_digest (package); file_digest (verify)"
    )


if __name__ == "__main__":
    main()
