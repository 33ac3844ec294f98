"""What ``quantize`` refuses, and what it says then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compress_specs import write_spec
from quantize_specs import export_onnx, write_data

import ingot
from ingot.errors import InputError, ModelError, SpecError, UsageError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spec(tmp_path_factory.mktemp("refusals"))


@pytest.fixture(scope="module")
def onnx_file(spec: Path) -> Path:
    return export_onnx(spec, spec.parent)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (("secnd", 8),)}, "did you mean 'second'"),
        ({"layers": (("second", 3),)}, "3 bits"),
        ({"skip_layers": (7,)}, "an index of 0 to 2"),
        ({"skip_layers_ratio": 2.0}, "expected 0 to 1"),
        ({"delta": -1.0}, "at least 0"),
        ({"delta": 99.5}, "cannot drop by"),
        ({"resume": True, "fresh": True}, "both --resume and --fresh"),
        ({"formats": ("openvino",)}, "onnx, tflite"),
        ({"eval_key": "speed"}, "accuracy"),
        ({"eval_split": "train"}, "calibrated on the split 'train'"),
        ({"skip_layers": (0, 1, 2)}, "leave all layers float"),
    ],
)
def test_impossible_options(spec: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, ModelError, SpecError)) as error:
        ingot.quantize(spec, output=tmp_path / "run", **options)
    if "delta" not in options:  # which takes a measurement to tell
        assert not (tmp_path / "run").exists()
    assert said in f"{error.value.message} {error.value.hint}"


def test_a_bare_file_needs_data(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data FILE\.npz"):
        ingot.quantize(onnx_file, output=tmp_path / "run")


def test_an_array_that_is_missing(onnx_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", pixels=np.zeros((20, 1, 8, 8), np.float32), more=np.zeros(20))
    with pytest.raises(InputError, match="no array 'image'"):
        ingot.quantize(onnx_file, data=tmp_path / "data.npz", output=tmp_path / "run")


def test_too_few_samples(onnx_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.zeros((5, 1, 8, 8), np.float32))
    with pytest.raises(InputError, match="expected at least 8"):
        ingot.quantize(onnx_file, data=tmp_path / "data.npz", output=tmp_path / "run")


def test_calibration_data_with_nan(spec: Path, tmp_path: Path) -> None:
    code = """

def loaders():
    from ingot.zoo.digits import load_digits
    images, labels = load_digits("train")
    images[5, 0, 2, 2] = float("nan")
    test = load_digits("test")
    pack = lambda x, y: [(torch.from_numpy(x), torch.from_numpy(y))]
    return {"train": pack(images[:64], labels[:64]), "test": pack(*test)}
"""
    broken = write_spec(tmp_path, code, data={"splits": "net:loaders"})
    with pytest.raises(InputError, match="calibration batch 0: image: 1 of 4096 values"):
        ingot.quantize(broken, output=tmp_path / "run")


def test_no_split_to_calibrate_on(tmp_path: Path) -> None:
    code = """

def loaders():
    from ingot.zoo.digits import load_digits
    images, labels = load_digits("test")
    return {"test": [(torch.from_numpy(images), torch.from_numpy(labels))]}
"""
    spec = write_spec(tmp_path, code, data={"splits": "net:loaders"})
    with pytest.raises(SpecError, match="no calibration data"):
        ingot.quantize(spec, output=tmp_path / "run")


def test_a_file_that_is_quantized_already(onnx_file: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz", labels=True)
    first = ingot.quantize(onnx_file, data=data, output=tmp_path / "first")
    with pytest.raises(ModelError, match="quantized already"):
        ingot.quantize(first.artifacts[0].path, data=data, output=tmp_path / "second")


def test_nothing_to_quantize(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    tensor = onnx.TensorProto.FLOAT
    value = [helper.make_tensor_value_info(name, tensor, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "relu.onnx",
    )
    np.savez(tmp_path / "data.npz", x=np.ones((16, 4), np.float32))
    with pytest.raises(ModelError, match="no layer that can be quantized"):
        ingot.quantize(tmp_path / "relu.onnx", data=tmp_path / "data.npz", output=tmp_path / "run")


def test_another_run_in_the_folder(spec: Path, tmp_path: Path) -> None:
    ingot.quantize(spec, output=tmp_path / "run", dry_run=True)
    with pytest.raises(UsageError, match="--resume or --fresh"):
        ingot.quantize(spec, output=tmp_path / "run", dry_run=True)
    with pytest.raises(UsageError, match="another options"):
        ingot.quantize(spec, output=tmp_path / "run", resume=True)


def test_list_layers(spec: Path, ingot_cli: Any) -> None:
    shown = ingot_cli("quantize", spec, "--list-layers", "--skip-layers", "1", "-q")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["0", "first", "Conv"],
        ["1", "second", "Conv"],
        ["2", "head", "Gemm"],
    ]
    assert "skip_layers names it" in lines[2]


def test_options_that_are_no_bits(spec: Path, ingot_cli: Any) -> None:
    for option in (("--layer", "second"), ("--layer", "=8"), ("--skip-layers", "1,x")):
        done = ingot_cli("quantize", spec, *option)
        assert done.returncode == 2
        assert "expected" in done.stderr


def test_data_that_the_run_would_replace(onnx_file: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "golden.npz", labels=True)
    before = data.read_bytes()
    with pytest.raises(UsageError, match=r"would replace golden\.npz"):
        ingot.quantize(onnx_file, data=data, output=tmp_path)
    assert data.read_bytes() == before
