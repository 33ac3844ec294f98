"""Times ``ingot.export`` against the converter alone, and measures its peak memory.

Time: an export of ResNet-18 (224 px) and of a ViT to a dynamic-shape ONNX file, its checks and the
parity process included, in a warm process, against a plain ``torch.onnx.export`` of the same module
that saves its file; it may take 1.3 times as long. Speed: the two files in ONNX Runtime, one
thread, taking turns; ours may not be slower. Memory: the peak of the process that exports a model
of 3 GB (``INGOT_BENCH_BYTES`` for another size), which may be 2.2 times the model, and the peak of
it and the parity process together, which may be 3.5 times; sampled 50 times a second, shared pages
counted by share (PSS).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Row, print_table, quotient, seconds_of, take_turns

SIZE = int(os.environ.get("INGOT_BENCH_BYTES", 3 * 10**9))
ROUNDS = 5
TIME_TARGET, SPEED_TARGET = 1.3, 1.05
ALONE_TARGET, TOGETHER_TARGET = 2.2, 3.5

NETWORKS = {
    "resnet18": ("resnet18", "imagenet", {}, 224, 1000),
    "vit": ("vit", "imagenet", {"patch": 16, "dim": 192, "depth": 12, "heads": 3}, 224, 1000),
}
CODE = """
import torch

from ingot.zoo import get_model_by_name

def build():
    torch.manual_seed(0)
    return get_model_by_name({name!r}, {data!r}, **{kwargs!r})
"""
LARGE_CODE = """
import torch
from torch import nn

def build(width, depth):
    # Not initialised: only memory is measured.
    with torch.device("meta"):
        layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
        net = nn.Sequential(*layers)
    net = net.to_empty(device="cpu")
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 1e-5)
    return net
"""
SPEC = """
name: {name}
model: {{framework: torch, entrypoint: "net:build", kwargs: {kwargs}}}
inputs: [{{name: x, dtype: float32, shape: [batch, {inputs}]}}]
outputs: [{{name: y, dtype: float32, shape: [batch, {outputs}]}}]
"""
EXPORT_LARGE = """
import sys
import ingot
ingot.export(sys.argv[1], "onnx", sys.argv[2], mode="dynamic")
"""


def write_spec(folder: Path, name: str, code: str, kwargs: str, inputs: str, outputs: int) -> Path:
    """Write the code of a model and its spec; return the spec."""
    folder.mkdir()
    (folder / "net.py").write_text(code)
    spec = folder / f"{name}.yaml"
    spec.write_text(SPEC.format(name=name, kwargs=kwargs, inputs=inputs, outputs=outputs))
    return spec


def time_rows(folder: Path) -> list[Row]:
    """Compare the time of an export, and the speed of its file, with the converter alone."""
    import torch

    import ingot
    from ingot.zoo import get_model_by_name

    rows = []
    for name, (network, data, kwargs, size, classes) in NETWORKS.items():
        code = CODE.format(name=network, data=data, kwargs=kwargs)
        spec = write_spec(folder / name, name, code, "{}", f"3, {size}, {size}", classes)
        torch.manual_seed(0)
        module = get_model_by_name(network, data, **kwargs).eval()
        example = torch.rand(2, 3, size, size)
        plain = folder / f"{name}.onnx"

        def convert(module: Any = module, example: Any = example, plain: Path = plain) -> None:
            program = torch.onnx.export(
                module,
                (example,),
                dynamic_shapes=({0: "batch"},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            program.save(plain)

        def export(spec: Path = spec) -> None:
            ingot.export(spec, "onnx", folder / "out", mode="dynamic", force=True)

        timed = take_turns({"ours": seconds_of(export), "plain": seconds_of(convert)}, ROUNDS)
        what = f"export {name}, with parity"
        rows.append(quotient(what, timed["ours"], timed["plain"], "s", TIME_TARGET))
        ours = folder / "out" / f"{name}fp32_dynamic_shape.onnx"
        speed = take_turns(
            {"ours": runtime_of(ours, size), "plain": runtime_of(plain, size)}, 10 * ROUNDS
        )
        what = f"{name} in ONNX Runtime"
        ours_ms, plain_ms = 1e3 * speed["ours"], 1e3 * speed["plain"]
        rows.append(quotient(what, ours_ms, plain_ms, "ms", SPEED_TARGET))
    return rows


def runtime_of(path: Path, size: int) -> Callable[[], float]:
    """Return a function that times one run of a file in ONNX Runtime, with one thread."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.random.rand(1, 3, size, size).astype(np.float32)}
    return seconds_of(lambda: session.run(None, feed))


def memory_rows(folder: Path) -> list[Row]:
    """Measure the peak memory of exporting a large model, alone and with the parity process."""
    width = 8192
    depth = max(1, round(SIZE / (4 * width * width)))
    size = 4 * depth * width * (width + 1)
    kwargs = json.dumps({"width": width, "depth": depth})
    spec = write_spec(folder / "large", "large", LARGE_CODE, kwargs, str(width), width)
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT_LARGE, str(spec), str(folder / "large_out")]
    )
    peaks = {"alone": 0, "together": 0}
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            tree = [process.pid, *children_of(process.pid)]
            used = [proportional_set_size(pid) for pid in tree]
            peaks["alone"] = max(peaks["alone"], used[0])
            peaks["together"] = max(peaks["together"], sum(used))
            time.sleep(0.02)

    sampler = threading.Thread(target=sample)
    sampler.start()
    code = process.wait()
    done.set()
    sampler.join()
    if code:
        sys.exit("the export of the large model failed")
    gib = 1 << 30
    return [
        quotient(f"peak memory, model of {size / 1e9:.1f} GB", peaks["alone"] / gib, size / gib,
                 "GiB", ALONE_TARGET),
        quotient("the same with the parity process", peaks["together"] / gib, size / gib,
                 "GiB", TOGETHER_TARGET),
    ]  # fmt: skip


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def proportional_set_size(pid: int) -> int:
    """Return the bytes of memory of a process, shared pages by share; 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def main() -> None:
    """Measure, and print the table."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    warnings.simplefilter("ignore")
    import logging

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="ingot-bench-") as name:
        folder = Path(name)
        rows = memory_rows(folder) if sys.platform == "linux" else []
        print_table(rows + time_rows(folder))


if __name__ == "__main__":
    main()
