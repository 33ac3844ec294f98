"""``ingot diff`` on what ``ingot export`` makes: one network in several formats and precisions."""

from __future__ import annotations

import json
from pathlib import Path

import networks
import numpy as np
import pytest
from conftest import IngotCli

import ingot

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits network: its spec, and files of it."""
    folder = tmp_path_factory.mktemp("diff")
    spec = networks.digits_cnn(folder)
    made = ingot.export(spec, ["onnx", "jit", "pt2"], folder / "fp32", mode="dynamic").artifacts
    half = ingot.export(spec, "onnx", folder / "fp16", mode="dynamic", precision="fp16").artifacts
    plain = ingot.export(spec, "onnx", folder / "plain", mode="dynamic", bn_fusion=False).artifacts
    return {
        "spec": spec,
        **{artifact.format: artifact.path for artifact in made},
        "fp16": half[0].path,
        "unfolded": plain[0].path,
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [("spec", "onnx"), ("onnx", "spec"), ("unfolded", "onnx"), ("jit", "onnx"), ("onnx", "pt2")],
)
def test_formats_of_one_network_agree(files: dict[str, Path], first: str, second: str) -> None:
    result = ingot.diff(files[first], files[second], tolerance=1e-5)
    assert result.exit_code == 0
    assert result.divergence is None
    assert result.outputs[0].relative < 1e-5
    assert result.inputs == ("golden" if "spec" in (first, second) else "random")
    # BatchNorm is folded in one of them: its output is that of the convolution in the other.
    if {first, second} == {"spec", "onnx"}:
        assert [layer.name for layer in result.layers][-1] == "fc"
        assert len(result.layers) >= 4


def test_half_precision_differs_a_little_from_layer_to_layer(files: dict[str, Path]) -> None:
    result = ingot.diff(files["onnx"], files["fp16"], tolerance=1e-2)
    assert result.exit_code == 0
    assert 1e-6 < result.outputs[0].relative < 1e-2
    assert len(result.layers) >= 4
    assert all(layer.snr_db is None or 40 < layer.snr_db < 100 for layer in result.layers)
    assert result.second.size_bytes < result.first.size_bytes
    strict = ingot.diff(files["onnx"], files["fp16"], tolerance=1e-6)
    assert strict.exit_code == 4
    assert strict.divergence is not None


def test_the_command_writes_json(
    files: dict[str, Path], tmp_path: Path, ingot_cli: IngotCli
) -> None:
    np.savez(tmp_path / "given.npz", image=np.ones((3, 1, 8, 8), np.float32))
    options = ("--inputs", "given.npz", "--no-layers", "--tolerance", "1e-6", "--json")
    done = ingot_cli("diff", files["onnx"], files["fp16"], *options)
    assert done.returncode == 4, done.stderr
    document = json.loads(done.stdout)
    assert document["equal"] is False
    assert document["inputs"] == "given"
    assert document["layers"] == []
    assert document["divergence"] is None
    assert document["outputs"][0]["shape"] == [3, 10]
    assert document["second"]["size_bytes"] == files["fp16"].stat().st_size


def test_inputs_of_another_shape_are_refused(
    files: dict[str, Path], tmp_path: Path, ingot_cli: IngotCli
) -> None:
    np.savez(tmp_path / "wrong.npz", image=np.ones((3, 1, 9, 9), np.float32))
    done = ingot_cli("diff", files["onnx"], files["fp16"], "--inputs", "wrong.npz")
    assert done.returncode == 5
    assert "image" in done.stderr
    assert "Traceback" not in done.stderr
