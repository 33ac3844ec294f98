"""What tracing hides: branches that other sizes or values take, writes in place, masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import write

import ingot
from ingot.exporters.parity import difference

CODE = """
import torch
from torch import nn
from torch.nn import functional as F


class Sign(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        y = self.fc(x)
        if x.sum() >= 0:
            return y
        return -y * 10


class Truncating(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(200, 8)

    def forward(self, x):
        if x.shape[1] > 100:
            x = x[:, :100]
        return self.embedding(x).mean(1)


class Padding(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, 2)

    def forward(self, x):
        if x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        return self.conv(x)


class Recent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)

    def forward(self, x):
        y = self.lstm(x)[0]
        if x.shape[1] > 32:
            y = y[:, -32:]
        return y.mean(1)


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()

    def forward(self, x, drop):
        y = self.conv(x)
        y[drop > 4] = 0
        return self.norm(y)


class Anchors(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("anchors", torch.rand(4, 8))

    def forward(self, x):
        y = self.conv(x)
        return {"y": y, "anchors": self.anchors * 1.0, "mean": y.mean()}


def make(name):
    torch.manual_seed(0)
    return globals()[name]()
"""

TENSORS = {
    "Sign": ("{name: x, dtype: float32, shape: [batch, 4]}", "[batch, 2]"),
    "Truncating": ("{name: x, dtype: int64, shape: [batch, length]}", "[batch, 8]"),
    "Padding": ("{name: x, dtype: float32, shape: [batch, 3, h, w]}", "[batch, 4, null, null]"),
    "Recent": ("{name: x, dtype: float32, shape: [batch, length, 4]}", "[batch, 8]"),
    "Dropped": (
        "{name: x, dtype: float32, shape: [batch, 3, 8, 8]}, {name: drop, dtype: int64, shape:"
        " [batch]}",
        "[batch, 4, 8, 8]",
    ),
    "Anchors": ("{name: x, dtype: float32, shape: [batch, 3, 8, 8]}", "[batch, 4, 6, 6]"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code and a spec a network."""
    place = tmp_path_factory.mktemp("hidden")
    write(place / "net.py", CODE)
    for name, (inputs, output) in TENSORS.items():
        more = ""
        if name == "Anchors":
            more = (
                ", {name: anchors, dtype: float32, shape: [4, 8]},"
                " {name: mean, dtype: float32, shape: []}"
            )
        text = (
            f"name: {name}\n"
            f"model: {{framework: torch, entrypoint: 'net:make', kwargs: {{name: {name}}}}}\n"
            f"inputs: [{inputs}]\n"
            f"outputs: [{{name: y, dtype: float32, shape: {output}}}{more}]\n"
        )
        write(place / f"{name}.yaml", text)
    return place


@pytest.mark.parametrize("opset", [None, 17])
def test_a_branch_on_data_is_refused_at_every_opset(folder: Path, opset: int | None) -> None:
    with pytest.raises(ingot.ModelError, match=r"depends on data.*net\.py:\d+: if x\.sum"):
        ingot.export(folder / "Sign.yaml", "onnx", folder / "out", opset=opset)


def test_a_branch_that_longer_inputs_take_is_refused(folder: Path) -> None:
    with pytest.raises(ingot.ModelError, match="larger than 100 in dimension 1"):
        ingot.export(folder / "Truncating.yaml", "onnx", folder / "out")


@pytest.mark.parametrize("name", ["Padding", "Recent"])
def test_a_file_that_is_wrong_at_other_sizes_is_not_delivered(folder: Path, name: str) -> None:
    with pytest.raises(ingot.CheckError, match="not delivered"):
        ingot.export(folder / f"{name}.yaml", "onnx", folder / "out")
    assert not list((folder / "out").glob(f"{name}*")) if (folder / "out").exists() else True


def test_a_layer_whose_output_is_written_to_is_not_folded(folder: Path) -> None:
    result = ingot.export(folder / "Dropped.yaml", "onnx", folder / "dropped")
    assert result.folded == ()
    x = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    feed = {"x": x, "drop": np.array([0, 9, 2])}
    expected = ingot.load(folder / "Dropped.yaml").infer(feed)["y"]
    for artifact in result.artifacts:
        actual = ingot.load(artifact.path).infer(feed)["y"]
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.slow
def test_outputs_without_a_batch_pass_where_samples_are_run_one_by_one(folder: Path) -> None:
    result = ingot.export(folder / "Anchors.yaml", "tflite", folder / "anchors")
    outputs = ingot.load(result.artifacts[0].path).infer({"x": np.ones((1, 3, 8, 8), np.float32)})
    assert {name: array.shape for name, array in outputs.items()} == {
        "y": (1, 4, 6, 6),
        "anchors": (4, 8),
        "mean": (),
    }


def test_a_mask_value_does_not_hide_what_differs() -> None:
    expected = np.array([*np.linspace(-1, 1, 10), -1e9])
    actual = np.array([*np.zeros(10), -1e9])
    assert difference("inputs", "y", expected, actual).scaled == pytest.approx(1)
    assert difference("inputs", "y", expected, expected).scaled == 0
