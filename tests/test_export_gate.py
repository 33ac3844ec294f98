"""The gate: a file that does not compute what its source does is caught, and never delivered.

The conversion is broken on purpose, behind the last step of every ONNX file.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import networks
import pytest
from exports import listing

import ingot
from ingot.errors import CheckError

Change = Callable[[Any], None]


def break_conversion(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Change every ONNX file between its conversion and the gate."""
    import onnx

    from ingot.exporters import onnx as exporter

    real = exporter.finish

    def broken(converted: Any, job: Any, variant: Any, path: Path) -> Any:
        made = real(converted, job, variant, path)
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)
        return made

    monkeypatch.setattr(exporter, "finish", broken)


def scale_weight(name: str, factor: float, index: int = 0) -> Change:
    """Multiply one number of the first weight whose name contains ``name``."""

    def change(model: Any) -> None:
        from onnx import numpy_helper

        tensor = next(item for item in model.graph.initializer if name in item.name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[index] *= factor
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return change


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    networks.digits_cnn(folder)
    return folder


@pytest.fixture(scope="module")
def onnx_file(folder: Path) -> Path:
    result = ingot.export(folder / "digits_cnn.yaml", "onnx", folder / "good", mode="dynamic")
    return result.artifacts[0].path


def refused(source: Path, out: Path, formats: Any = "onnx", **options: Any) -> str:
    """Export, which has to fail the check and to leave nothing; return the message."""
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(CheckError) as raised:
        ingot.export(source, formats, out, **options)
    assert raised.value.exit_code == 4
    assert listing(out) == ["mine.txt"]
    return str(raised.value)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc"])
def test_one_wrong_weight_is_caught_and_localised(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    break_conversion(monkeypatch, scale_weight(f"{layer}.weight", 1.5))
    message = refused(folder / "digits_cnn.yaml", tmp_path / "out", mode="dynamic")
    assert "digits_cnnfp32_dynamic_shape.onnx: not delivered: output 'logits' on " in message
    assert "of its largest value; expected at most 0.0001" in message
    # BatchNorm is folded: the first output to compare is that of the BatchNorm.
    named = {"conv1": "bn1", "conv2": "bn2"}.get(layer, layer)
    assert f"the first layer that differs is {named} (" in message


def test_it_is_localised_between_onnx_files(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_conversion(monkeypatch, scale_weight("conv2.weight", 1.5))
    message = refused(onnx_file, tmp_path / "out")
    assert "the first layer that differs is conv2 (Conv)" in message


@pytest.mark.slow
def test_it_is_localised_from_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = networks.keras_cnn(tmp_path / "code")
    break_conversion(monkeypatch, scale_weight("logits", 3.0))
    message = refused(spec, tmp_path / "out", mode="dynamic")
    assert "the first layer that differs is logits (Dense)" in message


@pytest.mark.slow
def test_all_or_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good file of another format is not delivered beside a bad one; the old ones stay."""
    out = tmp_path / "out"
    names = ["digits_cnn_jit.pt", "digits_cnnfp32_dynamic_shape.onnx"]
    out.mkdir()
    for name in names:
        (out / name).write_text("old")
    break_conversion(monkeypatch, scale_weight("fc.weight", 1.5))
    with pytest.raises(CheckError, match="not delivered"):
        ingot.export(folder / "digits_cnn.yaml", ["jit", "onnx"], out, mode="dynamic", force=True)
    assert listing(out) == names
    assert {(out / name).read_text() for name in names} == {"old"}


def test_a_folder_that_the_export_made_goes_with_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_conversion(monkeypatch, scale_weight("fc.weight", 1.5))
    with pytest.raises(CheckError):
        ingot.export(folder / "digits_cnn.yaml", "onnx", tmp_path / "a" / "b", mode="dynamic")
    assert listing(tmp_path) == []


def test_what_is_within_the_tolerance_is_delivered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_conversion(monkeypatch, scale_weight("fc.weight", 1.001))
    message = refused(folder / "digits_cnn.yaml", tmp_path / "1", mode="dynamic", tolerance=1e-6)
    assert "expected at most 1e-06" in message
    spec = folder / "digits_cnn.yaml"
    result = ingot.export(spec, "onnx", tmp_path / "2", mode="dynamic", tolerance=1e-2)
    assert 1e-6 < result.artifacts[0].parity.worst.scaled < 1e-2


def test_a_wrong_dynamic_axis(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file takes only the batch that it was traced with."""

    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    break_conversion(monkeypatch, change)
    message = refused(folder / "digits_cnn.yaml", tmp_path / "out", mode="dynamic")
    assert "not delivered" in message
    assert "image" in message


def test_a_batch_that_is_mixed_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one sample, the file is right: only larger batches show it."""

    def change(model: Any) -> None:
        from onnx import helper

        (last,) = (node for node in model.graph.node if "logits" in node.output)
        last.output[0] = "logits_before"
        starts, ends, axes, steps = ("reverse_starts", "reverse_ends", "reverse_axes", "steps")
        for name, value in ((starts, -1), (ends, -(1 << 31)), (axes, 0), (steps, -1)):
            model.graph.initializer.append(helper.make_tensor(name, 7, [1], [value]))
        inputs = ["logits_before", starts, ends, axes, steps]
        model.graph.node.append(helper.make_node("Slice", inputs, ["logits"]))

    break_conversion(monkeypatch, change)
    message = refused(folder / "digits_cnn.yaml", tmp_path / "out", mode="dynamic")
    assert "output 'logits'" in message
    assert "batch 1" not in message


@pytest.mark.parametrize("wrong", ["nan", "shape", "name"])
def test_outputs_that_are_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def change(model: Any) -> None:
        from onnx import helper

        (last,) = (node for node in model.graph.node if "logits" in node.output)
        if wrong == "name":
            last.output[0] = model.graph.output[0].name = "others"
            return
        last.output[0] = "logits_before"
        kind = {"nan": "Log", "shape": "Unsqueeze"}[wrong]
        inputs = ["logits_before"]
        if wrong == "shape":
            model.graph.initializer.append(helper.make_tensor("axis", 7, [1], [0]))
            inputs.append("axis")
            del model.graph.output[0].type.tensor_type.shape.dim[:]
            model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.node.append(helper.make_node(kind, inputs, ["logits"]))

    break_conversion(monkeypatch, change)
    message = refused(folder / "digits_cnn.yaml", tmp_path / "out", mode="dynamic")
    expected = {
        "nan": "output 'logits' on ",
        "shape": "has the shape (1, 4, 10); the source returns (4, 10)",
        "name": "it does not return the output 'logits'",
    }
    assert expected[wrong] in message


@pytest.mark.skipif(
    not version("onnxruntime").startswith("1.31."),
    reason="made for what crashes ONNX Runtime 1.31 (trap T5); another version is installed",
)
def test_a_file_that_crashes_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime takes its process with it when it opens attention in fp16, written plainly."""
    from ingot.exporters import onnx_fp16

    spec = networks.transformer_encoder(tmp_path / "code")
    monkeypatch.setattr(onnx_fp16, "_keep_matmul_apart", lambda proto: None)
    message = refused(spec, tmp_path / "out", precision="fp16")
    assert "transformer_encoderfp16_dynamic_shape.onnx: not delivered: the process" in message
    assert "was ended by SIGSEGV" in message
