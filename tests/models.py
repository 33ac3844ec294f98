"""Small models for tests, made when they are asked for; nothing here is a test."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

INPUT_SPEC = [
    {"name": "x", "dtype": "float32", "shape": ("n",)},
    {"name": "y", "dtype": "float32", "shape": ("n",)},
]
OUTPUT_SPEC = [{"name": "out", "dtype": "float32", "shape": ("n",)}]
INPUTS = {"x": np.arange(5, dtype=np.float32), "y": np.full(5, 2, np.float32)}
EXPECTED = {"out": INPUTS["x"] + INPUTS["y"]}

SPEC_TENSORS = """
inputs:
  - {name: x, dtype: float32, shape: [n]}
  - {name: y, dtype: float32, shape: [n]}
outputs:
  - {name: out, dtype: float32, shape: [n]}
"""


def write(path: Path, text: str) -> Path:
    """Write a dedented text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return path


def onnx_add(path: Path, scale: float = 1.0) -> Path:
    """Write an ONNX file that computes ``out = scale * (x + y)``."""
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("Mul", ["sum", "scale"], ["out"]),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n"])
    scales = [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])]
    graph = helper.make_graph(nodes, "add", tensors, [out], scales)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save(model, str(path))
    return path


def torchscript_add(path: Path) -> Path:
    """Write a TorchScript file that computes ``{"out": x + y}``."""
    import torch

    class Add(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor):
            return {"out": x + y}

    torch.jit.script(Add()).save(str(path))
    return path


def python_add(folder: Path) -> Path:
    """Write a Python model and its spec; return the spec."""
    write(
        folder / "add.py",
        """
        def build():
            def model(x, y):
                return {"out": x + y}

            return model
        """,
    )
    text = "name: add\nmodel: {framework: python, entrypoint: add:build}\n" + SPEC_TENSORS
    return write(folder / "add.yaml", text)


def torch_scale(folder: Path) -> Path:
    """Write a PyTorch module with weights (``out = scale * x + y``); return its spec."""
    import torch
    from safetensors.torch import save_file

    write(
        folder / "net.py",
        """
        import torch
        from torch import nn

        from layers import Scale


        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = Scale()

            def forward(self, x, y):
                return self.scale(x) + y


        def build():
            return Net()
        """,
    )
    write(
        folder / "layers.py",
        """
        import torch
        from torch import nn


        class Scale(nn.Module):
            def __init__(self):
                super().__init__()
                self.factor = nn.Parameter(torch.ones(()))

            def forward(self, x):
                return self.factor * x
        """,
    )
    save_file({"scale.factor": torch.tensor(3.0)}, folder / "net.safetensors")
    np.savez(folder / "golden.npz", **INPUTS)
    text = (
        "name: scale\n"
        "model: {framework: torch, entrypoint: net:build, weights: net.safetensors}\n"
        "test: {inputs: golden.npz}\n" + SPEC_TENSORS
    )
    return write(folder / "scale.yaml", text)
