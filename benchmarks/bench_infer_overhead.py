"""What a checked ``infer`` in a warm process adds to the framework's own call.

The model adds two float32 vectors, the smallest thing that can be called, so that what is left is
the call itself. The target is 20 microseconds a call, with checks on, over ``session.run`` of ONNX
Runtime and over the call of a ``ScriptModule`` with tensors that are already there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Row, difference, print_table, take_turns

import ingot

CALLS = 2000
ROUNDS = 25
TARGET = 20.0
TENSORS = [{"name": name, "dtype": "float32", "shape": ["n"]} for name in ("x", "y")]
SUM = [{"name": "sum", "dtype": "float32", "shape": ["n"]}]
SIZES = (3, 4096)


def block(function: Callable[[], object]) -> Callable[[], float]:
    """Return a function that returns the microseconds that one of many calls takes."""

    def measure() -> float:
        started = time.perf_counter_ns()
        for _ in range(CALLS):
            function()
        return (time.perf_counter_ns() - started) / CALLS / 1e3

    return measure


def write_onnx(path: Path) -> None:
    """Write the addition model as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper

    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])
        for name in ("x", "y", "sum")
    }
    node = helper.make_node("Add", ["x", "y"], ["sum"])
    graph = helper.make_graph([node], "addition", [values["x"], values["y"]], [values["sum"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


def torch_addition() -> Any:
    """Return the addition model as a ``ScriptModule``."""
    import torch

    class Addition(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    return torch.jit.script(Addition())


def onnx_rows(folder: Path) -> list[Row]:
    """Measure ONNX Runtime."""
    write_onnx(folder / "add.onnx")
    path = ingot.create_onnx_package(
        folder / "onnx.ingot", "add", TENSORS, SUM, model_path=folder / "add.onnx"
    )
    rows = []
    with ingot.load(path, threads=1) as model, ingot.load(path, threads=1, check=False) as plain:
        session = model.native
        for size in SIZES:
            inputs = {name: np.ones(size, np.float32) for name in ("x", "y")}
            found = take_turns(
                {
                    "own": block(lambda feeds=inputs: session.run(None, feeds)),
                    "checked": block(lambda feeds=inputs: model.infer(feeds)),
                    "unchecked": block(lambda feeds=inputs: plain.infer(feeds)),
                },
                ROUNDS,
            )
            what = f"ONNX, n = {size}"
            rows.append(difference(what, found["checked"], found["own"], "us", TARGET))
            rows.append(difference(f"{what}, check=False", found["unchecked"], found["own"], "us"))
    return rows


def torchscript_rows(folder: Path) -> list[Row]:
    """Measure TorchScript, against calls with tensors, and with arrays to convert."""
    import torch

    path = ingot.create_torchscript_package(
        folder / "torchscript.ingot", "add", TENSORS, SUM, module=torch_addition()
    )
    rows = []
    with ingot.load(path, threads=1) as model, ingot.load(path, threads=1, check=False) as plain:
        module = model.native
        for size in SIZES:
            inputs = {name: np.ones(size, np.float32) for name in ("x", "y")}
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}

            def own(tensors: dict[str, Any] = tensors) -> Any:
                with torch.no_grad():
                    return module(**tensors)

            def own_arrays(arrays: dict[str, Any] = inputs) -> Any:
                with torch.no_grad():
                    return module(
                        x=torch.from_numpy(arrays["x"]), y=torch.from_numpy(arrays["y"])
                    ).numpy()

            found = take_turns(
                {
                    "own": block(own),
                    "own arrays": block(own_arrays),
                    "checked": block(lambda feeds=inputs: model.infer(feeds)),
                    "unchecked": block(lambda feeds=inputs: plain.infer(feeds)),
                },
                ROUNDS,
            )
            what = f"TorchScript, n = {size}"
            rows.append(difference(what, found["checked"], found["own"], "us", TARGET))
            rows.append(difference(f"{what}, check=False", found["unchecked"], found["own"], "us"))
            rows.append(
                difference(f"{what}, arrays both", found["checked"], found["own arrays"], "us")
            )
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        rows = [*onnx_rows(Path(name)), *torchscript_rows(Path(name))]
    print_table(rows)
    print(
        f"medians of {ROUNDS} blocks of {CALLS} calls that take turns; alternative: the framework's"
        " own call with its own tensors ('arrays both': with NumPy arrays in and out)"
    )


if __name__ == "__main__":
    main()
