"""Exports to TensorFlow Lite and OpenVINO; each export compares its files with the source."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import write

import ingot
from ingot.errors import ModelError, UsageError
from ingot.exporters.tflite_files import read_metadata
from ingot.frameworks import ModelSource, open_model

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'ingot[openvino]'"
)

NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 2, 2, 2)
        self.embedding = nn.Embedding(9, 8)

    def forward(self, image, ids):
        maps = self.body(image)
        pooled = maps.mean((2, 3)) + self.embedding(ids).sum(1)
        return {"mask": self.up(maps), "best class": pooled.argmax(1)}


def net():
    made = Net()
    norm = made.body[1]
    norm.running_mean.uniform_(), norm.running_var.uniform_(0.5, 2)
    return made


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x):
        return self.memory(self.attention(x, x, x, need_weights=False)[0])[0]


class Singular(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)
"""

SPEC = """
name: net
model: {framework: torch, entrypoint: "nets:net"}
inputs:
  - {name: image, dtype: float32, shape: [n, 3, 10, 10]}
  - {name: "ids.1", dtype: int64, shape: [n, 4]}
outputs:
  - {name: mask, dtype: float32, shape: [n, 2, 16, 16]}
  - {name: best class, dtype: int64, shape: [n]}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A network with BatchNorm, two inputs of two types, and names that are no identifiers."""
    write(tmp_path / "nets.py", NETS)
    return write(tmp_path / "net.yaml", SPEC)


def small_spec(folder: Path, name: str, shape: str, result: str) -> Path:
    write(folder / "nets.py", NETS)
    return write(
        folder / f"{name}.yaml",
        f"""
        name: {name}
        model: {{framework: torch, entrypoint: "nets:{name}"}}
        inputs: [{{name: x, dtype: float32, shape: {shape}}}]
        outputs: [{{name: y, dtype: float32, shape: {result}}}]
        """,
    )


def keras_lstm(path: Path) -> Path:
    import keras

    keras.utils.set_random_seed(0)
    steps = keras.Input((5, 3), name="steps.1")
    factor = keras.Input((1,), name="class")
    hidden = keras.layers.LSTM(4)(steps)
    gelu = keras.layers.Dense(3, activation="gelu")(hidden)
    keras.Model([steps, factor], {"a b": gelu * factor, "hidden": hidden}).save(path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tflite_from_pytorch(spec: Path, tmp_path: Path, precision: Any) -> None:
    result = ingot.export(spec, "tflite", tmp_path / "out", precision=precision)
    (artifact,) = result.artifacts
    assert artifact.path.name == f"net10x10{precision}.tflite"
    assert read_metadata(artifact.path)["spec_name"] == "net"
    assert artifact.parity.worst.scaled < (1e-5 if precision == "fp32" else 5e-3)
    model = open_model(ModelSource("tflite", "net", path=artifact.path))
    assert {spec.name: (spec.dtype, spec.shape) for spec in (*model.inputs, *model.outputs)} == {
        "image": ("float32", (1, 3, 10, 10)),
        "ids.1": ("int64", (1, 4)),
        "mask": ("float32", (1, 2, 16, 16)),
        "best class": ("int64", (1,)),
    }
    random = np.random.default_rng(0)
    layers = model.layers(
        {
            "image": random.random((1, 3, 10, 10), np.float32),
            "ids.1": np.zeros((1, 4), np.int64),
        }
    )
    assert "body.2" in {scope for layer in layers for scope in layer.scopes}
    kinds = {np.dtype(detail["dtype"]).name for detail in model.native.get_tensor_details()}
    assert ("float16" in kinds) == (precision == "fp16")


def test_tflite_from_attention_and_lstm(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "Attention", "[n, 6, 8]", "[n, 6, 4]")
    (artifact,) = ingot.export(spec, "tflite", tmp_path / "out").artifacts
    assert artifact.parity.worst.scaled < 1e-5


def test_tflite_from_torchscript(spec: Path, tmp_path: Path) -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    torch.jit.script(module.eval()).save(str(tmp_path / "net.pt"))
    script = write(
        tmp_path / "script.yaml",
        """
        name: script
        model: {framework: torchscript, file: net.pt}
        inputs: [{name: input, dtype: float32, shape: [n, 3, 4, 4]}]
        outputs: [{name: y, dtype: float32, shape: [n, 16]}]
        """,
    )
    (artifact,) = ingot.export(script, "tflite", tmp_path / "out").artifacts
    assert artifact.parity.worst.scaled < 1e-5


def test_tflite_from_keras_keeps_the_batch_free(tmp_path: Path) -> None:
    model = keras_lstm(tmp_path / "net.keras")
    (artifact,) = ingot.export(model, "tflite", tmp_path / "out").artifacts
    assert artifact.path.name == "netfp32_dynamic_shape.tflite"
    assert any("unrolled" in note for note in artifact.notes)
    with ingot.load(artifact.path) as loaded:
        shapes = {spec.name: spec.shape for spec in loaded.inputs}
        assert shapes == {"steps.1": (None, 5, 3), "class": (None, 1)}
        assert {spec.name for spec in loaded.outputs} == {"a b", "hidden"}
    fixed = ingot.export(model, "tflite", tmp_path / "out", mode="fixed", precision="fp16")
    assert fixed.artifacts[0].notes == ()


def test_exports_are_the_same_every_time(spec: Path, tmp_path: Path) -> None:
    first = ingot.export(spec, "tflite", tmp_path / "1").artifacts[0]
    assert ingot.export(spec, "tflite", tmp_path / "2").artifacts[0].sha256 == first.sha256


def test_what_tflite_cannot_hold_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    spec = small_spec(tmp_path, "Singular", "[n, 4, 4]", "[n, 4]")
    with pytest.raises(ModelError, match="svd"):
        ingot.export(spec, "tflite", tmp_path / "out")
    with pytest.raises(UsageError, match="fp16-io"):
        ingot.export(spec, "tflite", tmp_path / "out", precision="fp16", fp16_io=True)
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 4, 4], name="x")
        tf.identity(tf.linalg.svd(x, compute_uv=False), name="y")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    frozen = write(
        tmp_path / "graph.yaml",
        """
        name: graph
        model: {framework: tensorflow, graph: graph.pb, node_name_mapping: {x: "x:0", y: "y:0"}}
        inputs: [{name: x, dtype: float32, shape: [n, 4, 4]}]
        outputs: [{name: y, dtype: float32, shape: [n, 4]}]
        """,
    )
    with pytest.raises(UsageError, match="Svd"):
        ingot.export(frozen, "tflite", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_from_pytorch(spec: Path, tmp_path: Path, precision: Any) -> None:
    result = ingot.export(spec, "openvino", tmp_path / "out", precision=precision)
    names = [artifact.path.name for artifact in result.artifacts]
    assert names == [f"net{precision}_dynamic_shape.xml", f"net10x10{precision}.xml"]
    for artifact in result.artifacts:
        assert [path.suffix for path in artifact.companions] == [".bin"]
        assert artifact.parity.worst.scaled < (1e-5 if precision == "fp32" else 5e-3)
    with ingot.load(result.artifacts[0].path) as model:
        assert [spec.name for spec in model.inputs] == ["image", "ids.1"]
        assert [spec.dtype for spec in model.outputs] == ["float32", "int64"]


@needs_openvino
def test_openvino_from_keras(tmp_path: Path) -> None:
    model = keras_lstm(tmp_path / "net.keras")
    (artifact,) = ingot.export(model, "openvino", tmp_path / "out").artifacts
    with ingot.load(artifact.path) as loaded:
        assert {spec.name for spec in loaded.inputs} == {"steps.1", "class"}
        assert {spec.name for spec in loaded.outputs} == {"a b", "hidden"}
