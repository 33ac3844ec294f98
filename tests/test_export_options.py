"""The options of ``export``, by what is in the files that they make."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import exports
import networks
import numpy as np
import pytest
from conftest import IngotCli
from exports import listing
from models import write

import ingot
from ingot.errors import (
    CheckError,
    ModelError,
    OutputExistsError,
    SpecError,
    UntrustedCodeError,
    UsageError,
)

NET = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.bn = nn.BatchNorm2d(6)
            self.up = nn.Upsample(scale_factor=2)
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(6, 3000)

        def forward(self, image):
            x = self.up(torch.relu(self.bn(self.conv(image))))
            return self.head(self.norm(x.mean((2, 3))))


    def build():
        net = Net()
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for tensor in (*net.parameters(), net.bn.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=random) / 3)
        return net
"""
FREE = ("image: [batch, 3, height, width]", "y: [batch, 3000]")
FIXED = ("image: [batch, 3, 8, 8]", "y: [batch, 3000]")
IMAGE = np.random.default_rng(2).random((5, 3, 12, 10), np.float32)


def shapes(path: Path) -> dict[str, list[Any]]:
    import onnx

    graph = onnx.load(path).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def opset(path: Path) -> int:
    import onnx

    return next(item.version for item in onnx.load(path).opset_import if item.domain == "")


def names(result: Any) -> list[str]:
    return [artifact.path.name for artifact in result.artifacts]


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that takes images of every size."""
    return exports.torch_spec(tmp_path_factory.mktemp("free"), NET, *FREE)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose spec fixes 8 x 8."""
    return exports.torch_spec(tmp_path_factory.mktemp("fixed"), NET, *FIXED)


@pytest.fixture(scope="module")
def expected(free: Path) -> dict[str, Any]:
    with ingot.load(free) as model:
        return dict(model.infer({"image": IMAGE}))


@pytest.fixture(scope="module")
def plain(free: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An export without options."""
    return ingot.export(free, "onnx", tmp_path_factory.mktemp("plain"))


def test_free_images_have_a_file_a_resolution(free: Path, tmp_path: Path) -> None:
    result = ingot.export(free, "onnx", tmp_path, resolutions=[(16, 24), (9, 7), (16, 24)])
    assert names(result) == ["netfp32_dynamic_shape.onnx", "net16x24fp32.onnx", "net9x7fp32.onnx"]
    assert [item.shape for item in result.artifacts] == ["dynamic_shape", "16x24", "9x7"]
    found = [shapes(item.path) for item in result.artifacts]
    assert [item["image"] for item in found] == [
        ["batch", 3, "height", "width"],
        ["batch", 3, 16, 24],
        ["batch", 3, 9, 7],
    ]
    checked = result.artifacts[0].parity.inputs
    expected = ("at 16x24", "at 9x7", "batch 1", "batch 3")
    assert all(any(part in text for text in checked) for part in expected)


def test_fixed_images_can_have_other_resolutions(fixed: Path, tmp_path: Path) -> None:
    result = ingot.export(fixed, "onnx", tmp_path, resolutions=[(8, 8), (12, 10)])
    assert names(result) == ["netfp32_dynamic_shape.onnx", "net8x8fp32.onnx", "net12x10fp32.onnx"]
    found = [shapes(item.path)["image"] for item in result.artifacts]
    assert found == [["batch", 3, 8, 8], ["batch", 3, 8, 8], ["batch", 3, 12, 10]]
    with ingot.load(fixed) as model:
        eight = IMAGE[:, :, :8, :8]
        wanted = dict(model.infer({"image": eight}))
    actual = exports.run_onnx(result.artifacts[0].path, {"image": eight})
    assert exports.worst(wanted, actual) < 1e-5


def test_a_tensor_of_another_fixed_size_is_no_image_of_the_resolution(tmp_path: Path) -> None:
    code = NET.replace("def forward(self, image):", "def forward(self, image, grid):").replace(
        "self.norm(x.mean((2, 3)))", "self.norm(x.mean((2, 3)) + grid.sum((1, 2, 3))[:, None])"
    )
    spec = exports.torch_spec(tmp_path, code, FIXED[0], "grid: [batch, 5, 4, 2]", FIXED[1])
    result = ingot.export(spec, "onnx", tmp_path / "out", resolutions=[(8, 8), (12, 10)])
    found = [shapes(item.path) for item in result.artifacts]
    assert [item["image"] for item in found] == [
        ["batch", 3, 8, 8],
        ["batch", 3, 8, 8],
        ["batch", 3, 12, 10],
    ]
    assert [item["grid"] for item in found] == [["batch", 5, 4, 2]] * 3


def test_without_a_resolution_the_data_has_one(fixed: Path, tmp_path: Path) -> None:
    assert names(ingot.export(fixed, "onnx", tmp_path)) == [
        "netfp32_dynamic_shape.onnx",
        "net8x8fp32.onnx",
    ]


def test_dynamic_and_fixed(free: Path, fixed: Path, tmp_path: Path) -> None:
    result = ingot.export(fixed, "onnx", tmp_path / "1", mode="dynamic")
    assert listing(tmp_path / "1") == names(result) == ["netfp32_dynamic_shape.onnx"]
    result = ingot.export(free, "onnx", tmp_path / "2", mode="fixed", resolutions=[(9, 7)])
    assert listing(tmp_path / "2") == names(result) == ["net9x7fp32.onnx"]
    assert shapes(result.artifacts[0].path) == {"image": [1, 3, 9, 7], "y": [1, 3000]}
    inputs = result.artifacts[0].parity.inputs
    assert set(inputs) == {"random inputs at 9x7", "wide random inputs"}


def test_resolutions_go_with_images(tmp_path: Path) -> None:
    spec = exports.torch_spec(tmp_path, NET, "tokens: int64 [n, 3]", "y: [n, 2]")
    with pytest.raises(UsageError, match=r"inputs of four dimensions; found tokens: int64"):
        ingot.export(spec, "onnx", tmp_path / "out", resolutions=[(8, 8)])
    spec = exports.torch_spec(tmp_path, NET, "image: [1, 3, 8, 8]", "y: [1, 3000]")
    with pytest.raises(UsageError, match="no dynamic-shape file"):
        ingot.export(spec, "onnx", tmp_path / "out", mode="dynamic")


@pytest.mark.parametrize("wanted", [13, 18, 22])
def test_opset(free: Path, tmp_path: Path, expected: Any, wanted: int) -> None:
    result = ingot.export(free, "onnx", tmp_path, opset=wanted)
    for artifact in result.artifacts:
        assert opset(artifact.path) == wanted
    actual = exports.run_onnx(result.artifacts[0].path, {"image": IMAGE})
    assert exports.worst(expected, actual) < 1e-5


def test_an_opset_that_lacks_an_operator(plain: Any, tmp_path: Path) -> None:
    """The operator, its layer and the lowest opset are named; from ONNX and from PyTorch."""
    with pytest.raises(ModelError) as raised:
        ingot.export(plain.artifacts[0].path, "onnx", tmp_path / "out", opset=14)
    assert raised.value.exit_code == 5
    assert "the operator LayerNormalization (layer norm) is not in opset 14" in str(raised.value)
    assert "the lowest that has it is 17" in str(raised.value)
    code = """
        import torch
        from torch import nn


        class Warp(nn.Module):
            def forward(self, image, grid):
                return torch.nn.functional.grid_sample(image, grid, align_corners=False)


        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.warp = Warp()

            def forward(self, image, grid):
                return self.warp(image, grid)


        def build():
            return Net()
    """
    tensors = ("image: [n, 3, 8, 8]", "grid: [n, 4, 4, 2]", "y: [n, 3, 4, 4]")
    spec = exports.torch_spec(tmp_path, code, *tensors)
    with pytest.raises(ModelError) as raised:
        ingot.export(spec, "onnx", tmp_path / "out", opset=15)
    message = str(raised.value)
    assert "grid_sampler" in message
    assert "in warp (Warp) at net.py:7" in message
    assert "is not in opset 15; the lowest that has it is 16" in message
    assert not (tmp_path / "out").exists()


def test_re_export_of_onnx_to_another_opset(plain: Any, tmp_path: Path, expected: Any) -> None:
    source = plain.artifacts[0].path
    result = ingot.export(source, "onnx", tmp_path, opset=17)
    assert names(result) == ["netfp32_dynamic_shape.onnx"]
    assert opset(result.artifacts[0].path) == 17
    actual = exports.run_onnx(result.artifacts[0].path, {"image": IMAGE})
    assert exports.worst(expected, actual) < 1e-5


def test_fp16_halves_the_file_and_keeps_the_types_outside(
    free: Path, plain: Any, tmp_path: Path, expected: Any
) -> None:
    result = ingot.export(free, "onnx", tmp_path, precision="fp16", resolutions=[(12, 10)])
    assert names(result) == ["netfp16_dynamic_shape.onnx", "net12x10fp16.onnx"]
    for artifact in result.artifacts:
        assert artifact.precision == "fp16"
        assert any(
            "operators kept in fp32: " in note and "Resize (1)" in note for note in artifact.notes
        ), artifact.notes
        actual = exports.run_onnx(artifact.path, {"image": IMAGE})
        assert actual["y"].dtype == np.float32
        assert 1e-6 < exports.worst(expected, actual) < 5e-3
        assert artifact.parity.tolerance == 1e-2
    assert weights(result.artifacts[0].path) == {"float16"}
    assert weights(plain.artifacts[0].path) == {"float32"}
    assert 0.48 < result.artifacts[0].size_bytes / plain.artifacts[0].size_bytes < 0.56


def weights(path: Path) -> set[str]:
    """The types of weights that are more than a few numbers."""
    import onnx
    from onnx import numpy_helper

    arrays = [numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer]
    return {array.dtype.name for array in arrays if array.size > 20}


def test_fp16_io(free: Path, plain: Any, tmp_path: Path, expected: Any) -> None:
    for number, source in enumerate((free, plain.artifacts[0].path)):
        result = ingot.export(
            source, "onnx", tmp_path / str(number), precision="fp16", fp16_io=True, mode="dynamic"
        )
        feeds = {"image": IMAGE.astype(np.float16)}
        actual = exports.run_onnx(result.artifacts[0].path, feeds)
        assert actual["y"].dtype == np.float16
        assert exports.worst(expected, {"y": actual["y"].astype(np.float32)}) < 1e-2


@pytest.mark.slow
def test_fp16_io_of_pytorch_formats(free: Path, tmp_path: Path, expected: Any) -> None:
    options: Any = {"precision": "fp16", "fp16_io": True, "mode": "dynamic"}
    result = ingot.export(free, ["jit", "pt2"], tmp_path, **options)
    feeds = {"image": IMAGE.astype(np.float16)}
    for artifact, run in zip(result.artifacts, [exports.run_jit, exports.run_pt2], strict=True):
        actual = run(artifact.path, feeds, ["y"])
        assert actual["y"].dtype == np.float16
        assert exports.worst(expected, {"y": actual["y"].astype(np.float32)}) < 1e-2


def test_bf16_has_no_onnx(free: Path, tmp_path: Path, ingot_cli: IngotCli) -> None:
    done = ingot_cli("export", free, "--format", "onnx", "--precision", "bf16", "-o", "out")
    assert done.returncode == 2
    assert "onnx cannot be written in bf16: ONNX Runtime does not load" in done.stderr
    assert "possible: fp32, fp16" in done.stderr
    assert listing(tmp_path) == []


@pytest.mark.slow
def test_bf16_of_pytorch_formats(free: Path, tmp_path: Path, expected: Any) -> None:
    import torch

    result = ingot.export(free, ["jit", "pt2"], tmp_path, precision="bf16", mode="dynamic")
    assert names(result) == ["netbf16_jit.pt", "netbf16_dynamic_shape.pt2"]
    for path, run in zip(
        [item.path for item in result.artifacts], [exports.run_jit, exports.run_pt2], strict=True
    ):
        actual = run(path, {"image": IMAGE}, ["y"])
        assert actual["y"].dtype == np.float32
        assert 1e-5 < exports.worst(expected, actual) < 5e-2
    script = torch.jit.load(str(result.artifacts[0].path))
    assert {tensor.dtype for tensor in script.parameters()} == {torch.bfloat16}


def test_name_and_tolerance(free: Path, tmp_path: Path) -> None:
    result = ingot.export(free, "onnx", tmp_path, name="other-1.2", tolerance=1e-3)
    assert names(result) == ["other-1.2fp32_dynamic_shape.onnx"]
    assert result.name == "net"
    assert result.artifacts[0].parity.tolerance == 1e-3
    for number in (-1, float("nan")):
        with pytest.raises(UsageError, match=f"--tolerance: found {number}"):
            ingot.export(free, "onnx", tmp_path / "out", tolerance=number)
    with pytest.raises(CheckError, match=r"expected at most 1e-12"):
        ingot.export(free, "onnx", tmp_path / "out", tolerance=1e-12)
    assert not (tmp_path / "out").exists()


def test_existing_files_are_refused_and_others_left(free: Path, tmp_path: Path) -> None:
    other, mine = tmp_path / "other.txt", tmp_path / "netfp32_dynamic_shape.onnx"
    other.write_text("mine")
    mine.write_text("mine, too")
    with pytest.raises(OutputExistsError, match=r"netfp32_dynamic_shape\.onnx: exists") as raised:
        ingot.export(free, "onnx", tmp_path)
    assert raised.value.hint == "pass --force"
    assert mine.read_text() == "mine, too"
    ingot.export(free, "onnx", tmp_path, force=True)
    assert shapes(mine)
    assert other.read_text() == "mine"
    assert listing(tmp_path) == [mine.name, other.name]


@pytest.mark.slow
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    spec = networks.keras_two_inputs(tmp_path / "code")
    old = tmp_path / "out" / "keras_two_inputs_savedmodel" / "old.txt"
    for name in (old.name, "saved_model.pb"):
        write(old.with_name(name), "old")
    ingot.export(spec, "savedmodel", tmp_path / "out", force=True)
    assert not old.exists()
    assert (old.parent / "saved_model.pb").stat().st_size > 100


def test_a_file_is_never_replaced_by_its_own_export(plain: Any, tmp_path: Path) -> None:
    source = tmp_path / "netfp32_dynamic_shape.onnx"
    source.write_bytes(plain.artifacts[0].path.read_bytes())
    before = source.read_bytes()
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="would replace its own source"):
            ingot.export(source, "onnx", tmp_path, force=force)
    assert source.read_bytes() == before
    assert listing(tmp_path) == [source.name]


def section(free: Path, tmp_path: Path, text: str) -> Path:
    write(tmp_path / "net.py", NET)
    path = tmp_path / "net.yaml"
    path.write_text(free.read_text() + text)
    return path


@pytest.mark.slow
def test_the_spec_says_what_to_export(free: Path, tmp_path: Path) -> None:
    """The dictionary of Neutrino; its root_path starts at the spec."""
    text = """
export:
  format: [onnx]
  kwargs: {root_path: made, precision: fp16, resolutions: [[12, 12], [9, 7]]}
"""
    spec = section(free, tmp_path, text)
    result = ingot.export(spec)
    expected = ["netfp16_dynamic_shape.onnx", "net12x12fp16.onnx", "net9x7fp16.onnx"]
    assert names(result) == expected
    assert listing(tmp_path / "made") == sorted(expected)
    changed = ingot.export(
        spec,
        overrides=["export.kwargs.precision=fp32", "export.kwargs.resolutions=[[10, 10]]"],
        force=True,
    )
    assert names(changed) == ["netfp32_dynamic_shape.onnx", "net10x10fp32.onnx"]
    given = ingot.export(spec, "onnx", tmp_path / "given", precision="fp32", resolutions=[(8, 8)])
    assert names(given) == ["netfp32_dynamic_shape.onnx", "net8x8fp32.onnx"]
    assert [path.parent for path in tmp_path.rglob("*8x8*")] == [tmp_path / "given"]


def test_no_format(free: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no format to export to") as raised:
        ingot.export(free, output=tmp_path / "out")
    assert "export: {format: [onnx]}" in str(raised.value.hint)
    with pytest.raises(SpecError, match=r"export\.format.*'caffe'"):
        ingot.export(free, overrides=["export.format=caffe"])


def test_batch_norm_is_folded_unless_told_otherwise(free: Path, plain: Any, tmp_path: Path) -> None:
    def operators(path: Path) -> set[str]:
        import onnx

        return {node.op_type for node in onnx.load(path).graph.node}

    assert "BatchNormalization" not in operators(plain.artifacts[0].path)
    left = ingot.export(free, "onnx", tmp_path / "1", bn_fusion=False).artifacts[0].path
    assert "BatchNormalization" in operators(left)
    folded = ingot.export(left, "onnx", tmp_path / "2").artifacts[0].path
    assert "BatchNormalization" not in operators(folded)
    spec = section(free, tmp_path, "bn_fusion: false\n")
    said = ingot.export(spec, "onnx", tmp_path / "3").artifacts[0].path
    assert "BatchNormalization" in operators(said)


def test_what_an_onnx_file_says_of_itself(free: Path, plain: Any, tmp_path: Path) -> None:
    import onnx

    weights_spec = networks.digits_cnn(tmp_path)
    result = ingot.export(weights_spec, "onnx", tmp_path / "out")
    digest = hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    for artifact in result.artifacts:
        onnx.checker.check_model(str(artifact.path), full_check=True)
        model = onnx.load(artifact.path)
        assert model.producer_name == "ingot"
        assert model.producer_version == ingot.__version__
        assert {item.key: item.value for item in model.metadata_props} == {
            "source_framework": "torch",
            "source_sha256": digest,
            "spec_name": "digits_cnn",
        }
        assert artifact.sha256 == hashlib.sha256(artifact.path.read_bytes()).hexdigest()
        assert artifact.size_bytes == artifact.path.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "jit", "pt2", "tflite", "openvino"])
def test_no_file_holds_paths_of_this_machine(free: Path, tmp_path: Path, form: str) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    fixed_only = form == "tflite"
    result = ingot.export(free, form, tmp_path, mode="both" if fixed_only else "dynamic")
    for path in (result.artifacts[0].path, *result.artifacts[0].companions):
        parts = {"": path.read_bytes()}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = {name: archive.read(name) for name in archive.namelist()}
        for name, content in parts.items():
            for trace in (str(free.parent), str(tmp_path), "site-packages", str(Path.home())):
                assert trace.encode() not in content, f"{path.name} {name} holds {trace}"


@pytest.mark.slow
def test_the_command_tells_it_as_json(
    free: Path, plain: Any, tmp_path: Path, ingot_cli: IngotCli
) -> None:
    """And the file is the same, byte by byte, from another process in another folder."""
    done = ingot_cli("export", free, "--format", "onnx", "-o", "out", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document.keys() >= {"schema_version", "name", "framework", "artifacts"}
    (artifact,) = document["artifacts"]
    path = tmp_path / "out" / "netfp32_dynamic_shape.onnx"
    assert artifact["path"] == str(path)
    assert artifact["sha256"] == plain.artifacts[0].sha256
    assert path.read_bytes() == plain.artifacts[0].path.read_bytes()
    assert artifact["size_bytes"] == path.stat().st_size
    assert artifact["latency_ms"] > 0
    assert artifact["companions"] == artifact["notes"] == []
    assert (artifact["format"], artifact["shape"]) == ("onnx", "dynamic_shape")
    assert 0 <= artifact["difference"]["max_absolute"] < 1e-4
    assert artifact["difference"]["cosine"] == pytest.approx(1)
    assert artifact["difference"]["tolerance"] == 1e-4

    again = ingot_cli("export", free, "--format", "onnx", "-o", "out", "--json")
    assert again.returncode == 2
    assert "exists already" in json.loads(again.stdout)["error"]["message"]


@pytest.mark.slow
def test_the_command_prints_a_table(plain: Any, tmp_path: Path, ingot_cli: IngotCli) -> None:
    source = plain.artifacts[0].path
    options = ("--resolution", "12X10", "--precision", "fp16", "--name", "it", "--fixed")
    done = ingot_cli("export", source, "--format", "onnx", *options, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert listing(tmp_path) == ["it12x10fp16.onnx"]
    assert "it12x10fp16.onnx" in done.stdout
    assert "difference" in done.stdout
    assert "operators kept in fp32" in done.stderr
    bad = ingot_cli("export", source, "--format", "onnx", "--resolution", "12")
    assert bad.returncode == 2
    assert "found '12'; expected height and width, as 224x320" in bad.stderr


@pytest.mark.slow
def test_a_package_can_be_exported(free: Path, tmp_path: Path, expected: Any) -> None:
    package = tmp_path / "net.ingot"
    ingot.package(free, package)
    with pytest.raises(UntrustedCodeError):
        ingot.export(package, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = ingot.export(package, "onnx", tmp_path / "out", trust_code=True)
    assert names(result) == ["netfp32_dynamic_shape.onnx"]
    actual = exports.run_onnx(result.artifacts[0].path, {"image": IMAGE})
    assert exports.worst(expected, actual) < 1e-5
    with pytest.raises(UsageError, match="--set changes a spec; found a package"):
        ingot.export(package, "onnx", overrides=["name=other"])
