"""What a call costs in a worker process, beside the same call in this process.

Time over the in-process call is compared with one ``memcpy`` of what the call moves, in one run.
The published figure for one small call in Neuropod's worker is 100 to 500 microseconds.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import Row, difference, print_table

import ingot

SMALL_CALLS = 5000
LARGE_CALLS = 40
PARALLEL_SECONDS = 4.0

Array = np.ndarray[Any, Any]


def onnx_file(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Path:
    """Write an ONNX file of a few nodes."""
    import onnx
    from onnx import helper

    graph = helper.make_graph(nodes, "bench", inputs, outputs)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def small_model(folder: Path) -> Path:
    """A 10x5 float32 addition."""
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [10, 5]) for n in "xyz"]
    node = helper.make_node("Add", ["x", "y"], ["z"])
    return onnx_file(folder / "small.onnx", [node], tensors[:2], tensors[2:])


def image_model(folder: Path) -> Path:
    """A 1200x1920x3 uint8 image to its largest value."""
    from onnx import TensorProto, helper

    node = helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)
    image = helper.make_tensor_value_info("x", TensorProto.UINT8, [1200, 1920, 3])
    largest = helper.make_tensor_value_info("y", TensorProto.UINT8, [])
    return onnx_file(folder / "image.onnx", [node], [image], [largest])


def large_model(folder: Path) -> Path:
    """64 MB in, 64 MB out."""
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    return onnx_file(folder / "large.onnx", [node], tensors[:1], tensors[1:])


def slow_model(folder: Path) -> Path:
    """A chain of matrix products of more than 5 ms on one thread."""
    from onnx import TensorProto, helper

    size, count = 512, 8
    nodes = [
        helper.make_node("MatMul", ["x" if index == 0 else f"t{index}", "x"], [f"t{index + 1}"])
        for index in range(count)
    ]
    value = helper.make_tensor_value_info
    return onnx_file(
        folder / "slow.onnx",
        nodes,
        [value("x", TensorProto.FLOAT, [size, size])],
        [value(f"t{count}", TensorProto.FLOAT, [size, size])],
    )


def seconds_of(function: Callable[[], object], calls: int) -> list[float]:
    """Return the duration of each call; a tenth of them before are not counted."""
    found = []
    for index in range(calls + calls // 10 + 1):
        start = time.perf_counter()
        result = function()
        found.append(time.perf_counter() - start)
        del result
        if index < calls // 10 + 1:
            found.clear()
    return found


def small_row(folder: Path) -> Row:
    """A small call: what isolation adds."""
    path = small_model(folder)
    inputs = {name: np.ones((10, 5), np.float32) for name in "xy"}
    with ingot.load(path, threads=1) as here, ingot.load(path, threads=1, isolate=True) as apart:
        ours, theirs = [], []
        for _ in range(5):  # in turns
            theirs += seconds_of(lambda: here.infer(inputs), SMALL_CALLS // 5)
            ours += seconds_of(lambda: apart.infer(inputs), SMALL_CALLS // 5)
    return difference("10x5 float32, warm", median(ours) * 1e6, median(theirs) * 1e6, "us", 100)


def copy_seconds(array: Array) -> float:
    """Return how long one copy of an array takes, into memory that is there."""
    target = np.empty_like(array)
    return median(seconds_of(lambda: np.copyto(target, array), LARGE_CALLS))


def large_rows(what: str, path: Path, array: Array, moved: int) -> list[Row]:
    """A large input: what isolation adds, in copies of input and output.

    Args:
        what: the row.
        path: the model.
        array: its input.
        moved: bytes of input and output together.
    """
    copy = copy_seconds(array) * moved / array.nbytes
    with ingot.load(path, threads=1) as here, ingot.load(path, threads=1, isolate=True) as apart:
        shared = apart.allocate("x", array.shape)
        shared[...] = array
        times: dict[str, list[float]] = {"here": [], "apart": [], "shared": []}
        for _ in range(4):
            times["here"] += seconds_of(lambda: here.infer({"x": array}), LARGE_CALLS // 4)
            times["apart"] += seconds_of(lambda: apart.infer({"x": array}), LARGE_CALLS // 4)
            times["shared"] += seconds_of(lambda: apart.infer({"x": shared}), LARGE_CALLS // 4)
    base = median(times["here"])
    rows = []
    for name, key, target in (("", "apart", 1.2), (", allocate()", "shared", 0.2)):
        added = median(times[key]) - base
        rows.append(
            Row(
                f"{what}{name}",
                f"{added * 1e3:+.2f} ms",
                f"{copy * 1e3:.2f} ms memcpy",
                f"{added / copy:.2f}",
                f"<= {target:g}",
                added / copy <= target,
            )
        )
    return rows


def calls_per_second(model: Any, inputs: dict[str, Array], callers: int) -> float:
    """Return how many calls a second some threads get through."""
    end = time.perf_counter() + PARALLEL_SECONDS
    counts = [0] * callers

    def call(index: int) -> None:
        while time.perf_counter() < end:
            model.infer(inputs)
            counts[index] += 1

    threads = [threading.Thread(target=call, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / PARALLEL_SECONDS


def parallel_rows(folder: Path) -> list[Row]:
    """Two workers beside one, for a model of one thread; and two busy processes beside one."""
    path = slow_model(folder)
    inputs = {"x": np.full((512, 512), 1e-3, np.float32)}
    with (
        ingot.load(path, threads=1, isolate=True) as one,
        ingot.load(path, threads=1, isolate=True, workers=2) as two,
    ):
        rates: dict[str, list[float]] = {"one": [], "two": []}
        for _ in range(3):
            rates["one"].append(calls_per_second(one, inputs, 1))
            rates["two"].append(calls_per_second(two, inputs, 2))
    ours, alternative = median(rates["two"]), median(rates["one"])
    ratio = ours / alternative
    return [
        Row(
            f"two workers, {1e3 / alternative:.1f} ms a call",
            f"{ours:.0f} calls/s",
            f"{alternative:.0f} calls/s",
            f"{ratio:.2f}",
            ">= 1.7",
            ratio >= 1.7,
        )
    ]


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(prefix="ingot-bench-") as name:
        folder = Path(name)
        rows = [small_row(folder)]
        image = np.random.default_rng(0).integers(0, 255, (1200, 1920, 3), np.uint8)
        rows += large_rows("1200x1920x3 uint8", image_model(folder), image, image.nbytes + 1)
        large = np.random.default_rng(0).random(16 << 20, np.float32)
        rows += large_rows("64 MB to 64 MB", large_model(folder), large, 2 * large.nbytes)
        rows += parallel_rows(folder)
    print_table(rows)


if __name__ == "__main__":
    main()
