"""Packages on disk travel both ways: what Neuropod wrote is read, and what it reads is written."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from neuropod_packages import (
    CONSTANT,
    SPECS,
    TEST,
    X,
    Y,
    make_work,
    python_arguments,
    read_config,
    refused,
)

import ingot


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("format"))


@pytest.fixture(scope="module")
def package(work: Path) -> Path:
    """A Python package, a zip."""
    path = work / "out" / "python.zip"
    return ingot.create_python_package(path, "adder", **python_arguments(work), **TEST)


@pytest.fixture(scope="module")
def folder_package(work: Path) -> Path:
    """The same as a directory, with a lock that the installed packages do not satisfy."""
    return ingot.create_python_package(
        work / "out" / "folder",
        "adder",
        **python_arguments(work),
        requirements_lock=work / "pins.lock",
        input_tensor_device={"y": "CPU"},
        package_as_zip=False,
    )


# 1. The package on disk


@pytest.mark.parametrize("name", ["model", "model.neuropod", "model.zip", "model.pt", "model.onnx"])
def test_the_reader_goes_by_what_it_finds_not_by_the_extension(
    package: Path, folder_package: Path, name: str, tmp_path: Path
) -> None:
    shutil.copy(package, tmp_path / name)
    with ingot.load(tmp_path / name, trust_code=True) as model:
        assert model.infer({"x": X, "y": Y})["out"].tolist() == [11, 22, 33]
    if name != "model":
        return
    with ingot.load(folder_package, trust_code=True, ignore_lock=True) as model:
        assert model.infer({"x": X, "y": Y})["out"].tolist() == [11, 22, 33]


def test_zip_entries_are_sorted_dated_2000_and_weights_are_stored(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    assert names == sorted(names)
    assert {entry.date_time for entry in entries} == {(2000, 1, 1, 0, 0, 0)}
    stored = {entry.filename for entry in entries if entry.compress_type == zipfile.ZIP_STORED}
    assert stored == {"0/data/offset.txt", "0/ops/", "test_data.npz"}
    assert {entry.compress_type for entry in entries if entry.filename not in stored} == {
        zipfile.ZIP_DEFLATED
    }


def test_a_zip_can_be_stored_altogether(work: Path) -> None:
    path = work / "out" / "stored.zip"
    ingot.create_python_package(path, "adder", **python_arguments(work), store=True)
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_layout_of_a_python_package(package: Path, folder_package: Path) -> None:
    expected = {
        "config.json",
        "manifest.json",
        "0/config.json",
        "0/data/offset.txt",
        "0/code/__init__.py",
        "0/code/main.py",
        "0/code/tools/__init__.py",
        "0/code/tools/arithmetic.py",
    }
    with zipfile.ZipFile(package) as archive:
        assert set(archive.namelist()) == expected | {"0/ops/", "test_data.npz"}
    found = {path.relative_to(folder_package).as_posix() for path in folder_package.rglob("*.*")}
    assert found == expected | {"0/requirements.lock"}
    assert (folder_package / "0" / "ops").is_dir()


def test_the_manifest_lists_every_file_but_itself(package: Path, folder_package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        hashes = {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if not name.endswith("/") and name != "manifest.json"
        }
    assert manifest == {"manifest_version": 1, "files": hashes}
    manifest = json.loads((folder_package / "manifest.json").read_text())
    files = [path for path in folder_package.rglob("*") if path.is_file()]
    assert len(manifest["files"]) == len(files) - 1


def test_config_json_is_written_as_neuropod_writes_it(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        for name in ("config.json", "0/config.json"):
            text = archive.read(name).decode()
            assert json.dumps(json.loads(text), indent=4, sort_keys=True) == text
    config = read_config(package)
    own = config.pop("ingot")
    assert config == {
        "name": "adder",
        "platform": "python",
        "platform_version_semver": "*",
        **SPECS,
        "custom_ops": [],
        "input_tensor_device": {"x": "GPU", "y": "GPU"},
    }
    assert own["format_version"] == 1


def test_0_config_json_of_a_python_package(package: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        config = json.loads(archive.read("0/config.json"))
    assert config == {"entrypoint": "load", "entrypoint_package": "main"}


def test_input_tensor_device(folder_package: Path, work: Path) -> None:
    config = json.loads((folder_package / "config.json").read_text())
    assert config["input_tensor_device"] == {"x": "GPU", "y": "CPU"}
    out = work / "out"
    for arguments in (
        {"input_tensor_device": {"z": "CPU"}},
        {"default_input_tensor_device": "NPU"},
    ):
        refused(
            ingot.UsageError,
            "expected CPU or GPU",
            out,
            lambda arguments=arguments: ingot.create_python_package(
                out / "device", "adder", **python_arguments(work), **arguments
            ),
        )


def hand_made(
    folder: Path, config: dict[str, Any], entry: str = "def load(data_root): ..."
) -> Path:
    """A Python package as an old Neuropod may have written it: no manifest, no ``0/ops``."""
    (folder / "0" / "code").mkdir(parents=True)
    (folder / "0" / "code" / "main.py").write_text(entry)
    (folder / "0" / "config.json").write_text(
        json.dumps({"entrypoint_package": "main", "entrypoint": "load"})
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_what_is_optional_on_read(tmp_path: Path) -> None:
    config = {"name": "old", "platform": "python", "input_spec": [], "output_spec": []}
    path = hand_made(tmp_path / "old", config, CONSTANT)
    with ingot.load(path, trust_code=True) as model:
        assert (model.inputs, model.outputs) == ((), ())
        assert model.infer({}) == {}
    found = ingot.inspect(path)
    assert found["name"] == "old"
    assert found["platform_version_semver"] == "*"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 7}, "name: found 7"),
        ({"name": None}, "name: found"),
        ({"platform": "mxnet"}, "platform: found 'mxnet'; expected one of tensorflow"),
        ({"input_spec": {}}, "input_spec: found {}"),
        ({"input_spec": [{"name": "x", "dtype": "float32"}]}, "'shape' is missing"),
        ({"platform_version_semver": 3}, "platform_version_semver: found 3"),
        ({"custom_ops": ["../evil.so"]}, "custom_ops: found"),
        ({"custom_ops": ["gone.so"]}, "0/ops/gone.so"),
        ({"input_tensor_device": {"x": "TPU"}}, "input_tensor_device: found"),
    ],
)
def test_what_config_json_may_not_say(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {"name": "old", "platform": "python", "input_spec": [], "output_spec": [], **change}
    path = hand_made(tmp_path / "old", config, CONSTANT)
    with pytest.raises(ingot.ModelError, match=message) as caught:
        ingot.load(path, trust_code=True)
    assert caught.value.exit_code == 5


def test_the_semver_range_is_checked_against_what_is_installed(tmp_path: Path) -> None:
    config = {"name": "old", "platform": "python", "input_spec": [], "output_spec": []}
    fits = {**config, "platform_version_semver": ">=3.11.0 <4.0.0"}
    ingot.load(hand_made(tmp_path / "fits", fits, CONSTANT), trust_code=True).close()
    path = hand_made(tmp_path / "not", {**config, "platform_version_semver": "^2.7"}, CONSTANT)
    with pytest.raises(ingot.IngotError, match=r"\^2\.7"):
        ingot.load(path, trust_code=True)


NEUROPOD_DTYPES = [
    *("float32", "float64", "string"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
]


def test_dtypes_and_shapes(work: Path) -> None:
    dtypes = [*NEUROPOD_DTYPES, "bool", "float16", "bfloat16"]
    shapes = [[], [None], [3], ["n"], ["n", 2, None]]
    inputs = [{"name": dtype, "dtype": dtype, "shape": ["n"]} for dtype in dtypes]
    outputs = [
        {"name": f"out{index}", "dtype": "float32", "shape": shape}
        for index, shape in enumerate(shapes)
    ]
    path = ingot.create_random_package(work / "out" / "types", "types", inputs, outputs)
    config = read_config(path)
    assert config["input_spec"] == inputs
    assert config["output_spec"] == outputs


def test_numpy_aliases_are_canonicalised_and_tuples_are_shapes(work: Path) -> None:
    inputs = [
        {"name": "a", "dtype": "double", "shape": (None,)},
        {"name": "b", "dtype": "str", "shape": ()},
        {"name": "c", "dtype": np.int16, "shape": ("n", 2)},
    ]
    path = ingot.create_random_package(work / "out" / "aliases", "aliases", inputs, [])
    assert [spec["dtype"] for spec in read_config(path)["input_spec"]] == [
        "float64",
        "string",
        "int16",
    ]


@pytest.mark.parametrize("shape", [[0], [-1], [True], [2.0], "n", 3, None, [""]])
def test_impossible_shapes_are_refused(shape: object, work: Path) -> None:
    inputs = [{"name": "a", "dtype": "float32", "shape": shape}]
    out = work / "out"
    refused(
        ingot.SpecError,
        r"input_spec\[0\]\.shape",
        out,
        lambda: ingot.create_random_package(out / "shape", "shape", inputs, []),
    )


def golden_pickle(path: Path, content: object) -> Path:
    config = {"name": "old", "platform": "python", **SPECS}
    entry = "def load(data_root):\n    return lambda x, y: {'out': x + y}\n"
    folder = hand_made(path, config, entry)
    (folder / "test_data.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return folder


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the pickle ran')",)


def test_the_pickle_of_golden_data_is_read_only_when_trusted(tmp_path: Path) -> None:
    content = {"test_input": {"x": X, "y": Y}, "test_output": {"out": X + Y}}
    path = golden_pickle(tmp_path / "good", content)
    status = {check.name: check.status for check in ingot.verify(path).checks}
    assert status["golden"] == "skip"
    status = {check.name: check.status for check in ingot.verify(path, trust_code=True).checks}
    assert status["golden"] == "pass"
    evil = golden_pickle(tmp_path / "evil", {"test_input": {"x": _Evil()}})
    assert ingot.inspect(evil)["golden"] is None
    checks = {check.name: check for check in ingot.verify(evil, trust_code=True).checks}
    assert checks["golden"].status == "fail"
    assert "test_data.pkl" in checks["golden"].message


def test_golden_data_of_ingot_s_own_is_an_npz_without_pickle(package: Path) -> None:
    with zipfile.ZipFile(package) as archive, archive.open("test_data.npz") as file:
        arrays = dict(np.load(file, allow_pickle=False))
    assert sorted(arrays) == ["input/x", "input/y", "output/out"]
    assert arrays["output/out"].tolist() == [11, 22, 33]


def test_the_lock_is_checked_and_can_be_ignored(folder_package: Path) -> None:
    text = (folder_package / "0" / "requirements.lock").read_text()
    assert text == "# made by hand\nnumpy==0.0.1\n"
    with pytest.raises(ingot.IngotError, match=r"numpy.*0\.0\.1"):
        ingot.load(folder_package, trust_code=True)
    ingot.load(folder_package, trust_code=True, ignore_lock=True).close()


# What Neuropod itself wrote


@pytest.fixture
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "neuropod"


def test_neuropod_s_graph_def_with_an_empty_object_for_init_ops(
    fixtures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow")
    path = fixtures / "tf_addition_model"
    mapping = json.loads((path / "0" / "config.json").read_text())
    assert mapping["init_op_names"] == {}
    x = np.array([[1, 2], [3, 4]], np.float32)
    with ingot.load(path) as model:
        assert model.platform == "tensorflow"
        assert np.array_equal(model.infer({"x": x, "y": x})["out"], x + x)
    # The suffix :0 is optional, and a graph is taken before a SavedModel.
    bare = tmp_path / "bare"
    shutil.copytree(path, bare)
    bare.joinpath("0/data/savedmodel").mkdir(parents=True)
    bare.joinpath("0/data/savedmodel/saved_model.pb").write_bytes(b"not read")
    nodes = {name: node.removesuffix(":0") for name, node in mapping["node_name_mapping"].items()}
    (bare / "0" / "config.json").write_text(json.dumps({"node_name_mapping": nodes}))
    with ingot.load(bare) as model:
        assert np.array_equal(model.infer({"x": x, "y": x})["out"], x + x)


def test_neuropod_s_torchscript_with_a_union_typed_dict(fixtures: Path) -> None:
    pytest.importorskip("torch")
    path = fixtures / "torchscript_dict_with_union_value_type_model"
    strings, numbers = np.array(["1.5", "2"]), np.array([[3], [4]], np.float32)
    with ingot.load(path) as model:
        assert [spec.dtype for spec in model.inputs] == ["string", "float32"]
        out = model.infer({"a": strings, "b": numbers})["c"]
    assert out.dtype == np.float32
    assert out.shape == (2, 2)


def test_neuropod_s_torchscript_of_the_old_format(fixtures: Path, ingot_cli: Any) -> None:
    path = fixtures / "torchscript_addition_model"
    result = ingot_cli("infer", path, "-i", "x=[[1]]", "-i", "y=[[2]]")
    assert result.returncode == 5
    assert "format of PyTorch 1.0 to 1.3" in result.stderr
    assert "Traceback" not in result.stderr
    assert ingot.inspect(path)["platform"] == "torchscript"


def test_what_neuropod_wrote_can_be_inspected_without_a_framework(fixtures: Path) -> None:
    for path in fixtures.iterdir():
        found = ingot.inspect(path)
        assert found["platform"] in ("tensorflow", "torchscript")
        assert found["golden"] is None
