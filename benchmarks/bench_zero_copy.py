"""Shows that inputs reach the frameworks as views: no timing, and a failure is a failure.

PyTorch tells the address of a tensor's memory, which must be that of the NumPy array. ONNX Runtime
does not, so a large input is given to a model that returns a small part of it: a copy would show as
growth of the peak memory of the process by the size of the input. The same call on a copy made on
purpose shows that it would be seen.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import Row, print_table

import ingot

INPUT_BYTES = 256 << 20
TARGET_MIB = 16.0
MIB = 1 << 20
SHAPE = ["n"]

MODULE = """
import torch

class Model(torch.nn.Module):
    def forward(self, x):
        self.address = x.data_ptr()
        return x[:1] + 0.0

def build():
    return Model()
"""
SPEC = """
name: first
model: {framework: torch, entrypoint: zero_copy_net:build}
inputs: [{name: x, dtype: float32, shape: [n]}]
outputs: [{name: first, dtype: float32, shape: [m]}]
"""


def peak_mib() -> float:
    """Return the peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if sys.platform == "darwin" else 1024)


def pytorch_row(folder: Path) -> Row:
    """Compare the addresses that a PyTorch module and NumPy see."""
    (folder / "zero_copy_net.py").write_text(MODULE)
    (folder / "first.yaml").write_text(SPEC)
    array = np.ones(1024, np.float32)
    with ingot.load(folder / "first.yaml") as model:
        model.infer({"x": array})
        found = model.native.address
    return addresses("PyTorch", found, array)


def torchscript_row(folder: Path) -> Row:
    """Compare the addresses that a TorchScript module and NumPy see."""
    import torch

    class Address(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.size(0))

    torch.jit.script(Address()).save(str(folder / "same.pt"))
    array = np.ones(1024, np.float32)
    with ingot.load(folder / "same.pt") as model:
        # The model returns a view of what it got: so must the array that comes back be.
        (returned,) = model.infer({"x": array}).values()
    return addresses("TorchScript, there and back", returned.ctypes.data, array)


def addresses(what: str, found: int, array: np.ndarray[Any, Any]) -> Row:
    """Return the row of two addresses that must be one."""
    same = found == array.ctypes.data
    return Row(what, hex(found), hex(array.ctypes.data), "same" if same else "differ", "same", same)


def growth(path: Path, copies: bool) -> float:
    """Return by how many MiB one call with a large input raises this process's peak memory."""
    with ingot.load(path, threads=1) as model:
        array = np.ones(INPUT_BYTES // 4, np.float32)
        model.infer({"x": array[:1024]})
        before = peak_mib()
        model.infer({"x": array.copy() if copies else array})
        return peak_mib() - before


def write_slices(folder: Path) -> list[Path]:
    """Write models that return the first value of their input: ONNX, and TorchScript."""
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper

    bounds = [
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("start", 0), ("end", 1))
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    first = helper.make_tensor_value_info("first", TensorProto.FLOAT, [1])
    node = helper.make_node("Slice", ["x", "start", "end"], ["first"])
    graph = helper.make_graph([node], "first", [x], [first], bounds)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "first.onnx"))

    class First(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:1] + 0.0

    torch.jit.script(First()).save(str(folder / "first.pt"))
    return [folder / "first.onnx", folder / "first.pt"]


def growth_row(path: Path) -> Row:
    """Measure a call with a view, and one with a copy, in a process each."""

    def measure(how: str) -> float:
        command = [sys.executable, __file__, str(path), how]
        return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    ours, copied = measure("view"), measure("copy")
    seen = copied > 0.9 * INPUT_BYTES / MIB
    return Row(
        f"{path.suffix[1:]}, {INPUT_BYTES // MIB} MiB input",
        f"{ours:+.1f} MiB",
        f"{copied:+.1f} MiB",
        f"{ours / copied:.2f}",
        f"<= {TARGET_MIB:g} MiB",
        ours <= TARGET_MIB and seen,
    )


def main() -> None:
    if len(sys.argv) == 3:
        print(growth(Path(sys.argv[1]), sys.argv[2] == "copy"))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [pytorch_row(folder), torchscript_row(folder)]
        rows += [growth_row(path) for path in write_slices(folder)]
    print_table(rows)
    print(
        "addresses: of the memory that the model sees, and of the array; MiB: what one call adds to"
        " the peak memory, with the array itself, and with a copy made on purpose"
    )
    if not all(row.ok for row in rows):
        sys.exit("an input was copied")


if __name__ == "__main__":
    main()
