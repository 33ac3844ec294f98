"""Packages travel both ways: Ingot reads what Neuropod wrote, and writes what Neuropod reads."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot.packagers.base import PackageArguments, PackageOptions

SPECS = {
    "input_spec": [
        {"name": "x", "dtype": "float32", "shape": ["n"]},
        {"name": "y", "dtype": "float32", "shape": ["n"]},
    ],
    "output_spec": [{"name": "out", "dtype": "float32", "shape": [None]}],
}
X, Y = np.array([1, 2, 3], np.float32), np.array([10, 20, 30], np.float32)
TEST = {"test_input_data": {"x": X, "y": Y}, "test_expected_out": {"out": X + Y}}

MAIN = """
from .tools.arithmetic import add

def load(data_root):
    with open(data_root + "/offset.txt") as file:
        offset = float(file.read())
    return lambda x, y: {"out": add(x, y) + x.dtype.type(offset)}
"""

ADD_MODULE = """
import torch

class Add(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.offset = 0.0

    def forward(self, x, y):
        assert isinstance(x, torch.Tensor)
        return {"out": self.scale * x + y + self.offset}

def load(data_root):
    return Add()

def build(offset=0.0):
    module = Add()
    module.offset = offset
    return module

class Positional(torch.nn.Module):
    def forward(self, left, right):
        return left + right
"""

ADD_POSITIONAL = """
def build(offset):
    def add(left, right):
        return (left + right + left.dtype.type(offset),)
    return add
"""


def write_code(root: Path) -> None:
    """A root with a package without ``__init__.py``, byte code and data."""
    (root / "tools").mkdir(parents=True)
    (root / "main.py").write_text(MAIN, encoding="utf-8")
    (root / "tools" / "arithmetic.py").write_text("def add(x, y):\n    return x + y\n")
    (root / "tools" / "stale.pyc").write_bytes(b"byte code")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"byte code")


def python_arguments(root: Path) -> dict[str, Any]:
    return {
        "code_path_spec": [{"python_root": root / "code", "dirs_to_package": [""]}],
        "entrypoint_package": "main",
        "entrypoint": "load",
        "data_paths": [{"path": root / "zero.txt", "packaged_name": "offset.txt"}],
        **SPECS,
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with code and data; packages lie in ``out``."""
    folder = tmp_path_factory.mktemp("format")
    write_code(folder / "code")
    (folder / "zero.txt").write_text("0")
    (folder / "pins.lock").write_text("# made by hand\nnumpy==0.0.1\n")
    (folder / "out").mkdir()
    return folder


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


def read_config(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"))


def refused(error: type[Exception], match: str, out: Path, make: Callable[[], object]) -> None:
    """Check that ``make`` raises and leaves nothing new beside the packages."""
    before = sorted(out.iterdir())
    with pytest.raises(error, match=match):
        make()
    assert sorted(out.iterdir()) == before


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
    for arguments in ({"input_tensor_device": {"z": "CPU"}}, {"default_input_tensor_device": "NPU"}):
        refused(
            ingot.UsageError,
            "expected CPU or GPU",
            out,
            lambda arguments=arguments: ingot.create_python_package(
                out / "device", "adder", **python_arguments(work), **arguments
            ),
        )


def hand_made(folder: Path, config: dict[str, Any], entry: str = "def load(data_root): ...") -> Path:
    """A Python package as an old Neuropod may have written it: no manifest, no ``0/ops``."""
    (folder / "0" / "code").mkdir(parents=True)
    (folder / "0" / "code" / "main.py").write_text(entry)
    (folder / "0" / "config.json").write_text(
        json.dumps({"entrypoint_package": "main", "entrypoint": "load"})
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CONSTANT = "def load(data_root):\n    return lambda: {}\n"


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


# 2. Creating

COMMON = {
    "platform_version_semver": "*",
    "input_tensor_device": None,
    "default_input_tensor_device": "GPU",
    "custom_ops": (),
    "package_as_zip": True,
    "test_input_data": None,
    "test_expected_out": None,
    "persist_test_data": True,
}


def test_the_common_arguments_and_their_defaults() -> None:
    options = PackageOptions()
    for name, default in COMMON.items():
        assert getattr(options, name) == default
        assert name in PackageArguments.__annotations__


OWN = {
    "tensorflow": {
        *("frozen_graph_path", "graph_def", "saved_model_dir", "trackable_obj"),
        *("node_name_mapping", "init_op_names"),
    },
    "torchscript": {"module", "module_path"},
    "python": {
        *("data_paths", "code_path_spec", "entrypoint_package", "entrypoint", "requirements"),
    },
    "pytorch": {
        *("data_paths", "code_path_spec", "entrypoint_package", "entrypoint", "requirements"),
    },
    "keras": {"model", "node_name_mapping"},
    "ludwig": {"ludwig_model_path"},
    "onnx": {"model_path"},
    "random": set(),
}


@pytest.mark.parametrize("kind", OWN)
def test_the_own_arguments_of_each_packager(kind: str) -> None:
    parameters = inspect.signature(getattr(ingot, f"create_{kind}_package")).parameters
    common = {"path", "model_name", "input_spec", "output_spec", "arguments"}
    assert common | OWN[kind] <= set(parameters)


@pytest.mark.parametrize("kind", OWN)
def test_unknown_arguments_are_refused(kind: str, work: Path) -> None:
    required: dict[str, Any] = {
        "tensorflow": {"saved_model_dir": work},
        "torchscript": {"module_path": work / "none.pt"},
        "python": {
            "code_path_spec": [{"python_root": work / "code", "dirs_to_package": [""]}],
            "entrypoint_package": "main",
            "entrypoint": "load",
        },
        "keras": {"model_path": work / "none.keras"},
        "onnx": {"model_path": work / "none.onnx"},
        "random": {},
    }
    required["pytorch"] = required["python"]
    if kind == "ludwig":
        folder = work / "ludwig"
        folder.mkdir()
        (folder / "model_hyperparameters.json").write_text(
            '{"input_features": [], "output_features": []}'
        )
        required["ludwig"] = {"ludwig_model_path": folder}
    create = getattr(ingot, f"create_{kind}_package")
    out = work / "out"
    refused(
        TypeError,
        "pacakge_as_zip",
        out,
        lambda: create(out / "typo", "m", **SPECS, **required[kind], pacakge_as_zip=False),
    )


def test_an_existing_output_is_refused_before_any_work(package: Path, work: Path) -> None:
    before = package.read_bytes()
    arguments = {**python_arguments(work), "entrypoint": "never_looked_for"}
    refused(
        ingot.UsageError,
        "already exists",
        work / "out",
        lambda: ingot.create_python_package(package, "adder", **arguments),
    )
    assert package.read_bytes() == before


def test_a_package_that_fails_its_test_is_not_left_behind(work: Path) -> None:
    out = work / "out"
    for expected, error in (
        ({"out": X - Y}, "largest absolute difference 60 at"),
        ({"out": (X + Y)[:1]}, "found shape"),
        ({"sum": X + Y}, "unknown output 'sum'"),
        ({"out": np.full(3, np.nan)}, "3 NaN"),
    ):
        refused(
            ValueError,
            error,
            out,
            lambda expected=expected: ingot.create_python_package(
                out / "wrong",
                "adder",
                **python_arguments(work),
                test_input_data={"x": X, "y": Y},
                test_expected_out=expected,
            ),
        )


def test_expected_without_inputs_is_refused(work: Path) -> None:
    out = work / "out"
    refused(
        ingot.UsageError,
        "test_expected_out without test_input_data",
        out,
        lambda: ingot.create_python_package(
            out / "none", "m", **python_arguments(work), test_expected_out={"out": X}
        ),
    )


def test_test_data_need_not_be_persisted(work: Path) -> None:
    path = work / "out" / "silent"
    ingot.create_python_package(
        path, "adder", **python_arguments(work), **TEST, persist_test_data=False
    )
    assert ingot.inspect(path)["golden"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_paths": [{"path": ".", "packaged_name": "d"}]}, "is not a file"),
        ({"data_paths": [{"path": "zero.txt"}]}, "expected path and packaged_name"),
        ({"code_path_spec": [{"python_root": "code"}]}, "python_root and dirs_to_package"),
        (
            {"code_path_spec": [{"python_root": "code", "dirs_to_package": ["none"]}]},
            "no such folder",
        ),
        ({"entrypoint": "lod"}, "has no attribute 'lod'"),
        ({"entrypoint_package": "mian"}, "no module 'mian'"),
        ({"requirements": "numpy", "requirements_lock": "pins.lock"}, "at most one"),
    ],
)
def test_what_a_python_package_refuses(
    change: dict[str, Any], message: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    out = work / "out"
    refused(
        ingot.IngotError,
        message,
        out,
        lambda: ingot.create_python_package(
            out / "bad", "adder", **{**python_arguments(work), **change}
        ),
    )


def test_an_output_below_the_python_root_is_refused(work: Path) -> None:
    refused(
        ingot.UsageError,
        "below python_root",
        work / "code",
        lambda: ingot.create_python_package(
            work / "code" / "package", "adder", **python_arguments(work)
        ),
    )


def test_dirs_to_package_may_name_folders_of_the_root(work: Path) -> None:
    root = work / "two"
    for name in ("one", "other"):
        (root / name).mkdir(parents=True)
    (root / "other" / "main.py").write_text(CONSTANT)
    (root / "one" / "main.py").write_text(
        "import os\n\ndef load(data_root):\n    assert os.listdir(data_root) == []\n    return dict\n"
    )
    path = ingot.create_python_package(
        work / "out" / "part",
        "part",
        [],
        [],
        code_path_spec=[{"python_root": root, "dirs_to_package": ["one"]}],
        entrypoint_package="one.main",
        entrypoint="load",
    )
    with zipfile.ZipFile(path) as archive:
        code = {name for name in archive.namelist() if name.startswith("0/code/")}
    assert code == {"0/code/__init__.py", "0/code/one/__init__.py", "0/code/one/main.py"}
    # The data folder is there even when it is empty.
    with ingot.load(path, trust_code=True) as model:
        assert model.infer({}) == {}


def test_custom_ops_are_packaged_by_basename(work: Path) -> None:
    library = shutil.which("cc")
    if library is None:
        pytest.skip("there is no C compiler")
    (work / "op.c").write_text("int ingot_test_op(void) { return 7; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", work / "op.so", work / "op.c"], check=True)
    path = work / "out" / "ops"
    ingot.create_python_package(
        path, "adder", **python_arguments(work), custom_ops=[work / "op.so"]
    )
    assert read_config(path)["custom_ops"] == ["op.so"]
    with zipfile.ZipFile(path) as archive:
        assert archive.read("0/ops/op.so") == (work / "op.so").read_bytes()
    with ingot.load(path, trust_code=True) as model:
        assert model.infer({"x": X, "y": Y})["out"].tolist() == [11, 22, 33]


def addition_graph() -> Any:
    v1 = pytest.importorskip("tensorflow").compat.v1
    graph = v1.Graph()
    with graph.as_default():
        x, y = (v1.placeholder(v1.float32, [None], name=name) for name in "xy")
        bias = v1.get_variable("bias", [], initializer=v1.zeros_initializer())
        v1.add(x, y + bias, name="out")
        v1.global_variables_initializer()
    return graph.as_graph_def()


def test_tensorflow_graphs(work: Path) -> None:
    out, graph = work / "out", addition_graph()
    nodes = {"x": "x", "y": "y:0", "out": "out:0"}

    def create(name: str, **arguments: Any) -> Path:
        return ingot.create_tensorflow_package(out / name, "graph", **{**SPECS, **arguments})

    for arguments, message in (
        ({}, "exactly one of frozen_graph_path, graph_def, saved_model_dir, trackable_obj"),
        ({"graph_def": graph, "saved_model_dir": work}, "found graph_def and saved_model_dir"),
        ({"graph_def": graph}, "node_name_mapping"),
        ({"graph_def": graph, "node_name_mapping": {"x": "x", "y": "y"}}, "no entry for 'out'"),
        ({"frozen_graph_path": work / "none.pb", "node_name_mapping": nodes}, "no such file"),
    ):
        refused(
            ingot.IngotError,
            message,
            out,
            lambda arguments=arguments: create("bad", **arguments),
        )
    # One name as a string, and several as a list; without it the variable is not initialised.
    path = create(
        "graph", graph_def=graph, node_name_mapping=nodes, init_op_names="init", **TEST
    )
    with zipfile.ZipFile(path) as archive:
        assert {"0/data/model.pb", "0/ops/"} <= set(archive.namelist())
        config = json.loads(archive.read("0/config.json"))
    assert config == {"node_name_mapping": nodes, "init_op_names": ["init"]}


def test_saved_models(work: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")

    class Both(tensorflow.Module):  # type: ignore[misc,name-defined]
        @tensorflow.function(
            input_signature=[tensorflow.TensorSpec([None], "float32", name=name) for name in "xy"]
        )
        def serve(self, x: Any, y: Any) -> dict[str, Any]:
            return {"out": x + y, "unused": x - y}

    module = Both()
    folder = work / "saved"
    tensorflow.saved_model.save(module, str(folder), signatures=module.serve)
    out = work / "out"
    # Outputs may be a superset of the spec; inputs must equal it.
    path = ingot.create_tensorflow_package(
        work / "out" / "saved",
        "saved",
        **SPECS,
        **TEST,
        saved_model_dir=folder,
        package_as_zip=False,
    )
    assert (path / "0/data/savedmodel/saved_model.pb").is_file()
    assert json.loads((path / "0/config.json").read_text())["node_name_mapping"] is None
    config = json.loads((path / "config.json").read_text())
    (path / "manifest.json").unlink()
    for change, message in (
        ({"input_spec": SPECS["input_spec"][:1]}, "takes the input 'y'"),
        ({"output_spec": [{"name": "no", "dtype": "float32", "shape": [None]}]}, "output 'no'"),
    ):
        (path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ingot.ModelError, match=message):
            ingot.load(path)


def test_torchscript_takes_exactly_one_source_and_has_no_0_config(work: Path) -> None:
    torch = pytest.importorskip("torch")

    class Add(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x, y):  # type: ignore[no-untyped-def]
            return x + y

    out, module = work / "out", torch.jit.script(Add())
    torch.jit.save(module, str(work / "add.pt"))
    for arguments in ({}, {"module": module, "module_path": work / "add.pt"}):
        refused(
            ingot.UsageError,
            "exactly one of module, module_path",
            out,
            lambda arguments=arguments: ingot.create_torchscript_package(
                out / "bad", "add", **SPECS, **arguments
            ),
        )
    path = ingot.create_torchscript_package(
        out / "script", "add", **SPECS, **TEST, module_path=work / "add.pt"
    )
    with zipfile.ZipFile(path) as archive:
        assert "0/config.json" not in archive.namelist()
        assert archive.getinfo("0/data/model.pt").compress_type == zipfile.ZIP_STORED


def test_keras_specs_are_inferred_with_a_batch_size(work: Path) -> None:
    keras = pytest.importorskip("keras")
    image = keras.Input((4,), name="image")
    model = keras.Model([image], [keras.layers.Dense(2, name="scores")(image)])
    path = ingot.create_keras_package(
        work / "out" / "keras", "net", model=model, platform="tensorflow"
    )
    config = read_config(path)
    assert config["platform"] == "tensorflow"
    assert config["input_spec"] == [
        {"name": "image", "dtype": "float32", "shape": ["batch_size", 4]}
    ]
    assert [spec["shape"] for spec in config["output_spec"]] == [["batch_size", 2]]


# Neuropod runs what Ingot wrote: its loader, in a process without Ingot

LOADER = """
import importlib, json, os, sys, tempfile, zipfile
import numpy as np

results = {}
for number, (name, path) in enumerate(json.loads(sys.argv[1]).items()):
    root = path
    if os.path.isfile(path):
        root = tempfile.mkdtemp(dir=sys.argv[2])
        zipfile.ZipFile(path).extractall(root)
    config = json.load(open(os.path.join(root, "0", "config.json")))
    links = tempfile.mkdtemp(dir=sys.argv[2])
    unique = "neuropod_%d" % number
    os.symlink(os.path.join(root, "0", "code"), os.path.join(links, unique))
    sys.path.insert(0, links)
    module = importlib.import_module(unique + "." + config["entrypoint_package"])
    model = getattr(module, config["entrypoint"])(os.path.join(root, "0", "data"))
    for shift in (0, 1):
        x = np.array([1, 2, 3], np.float32) + np.float32(shift)
        returned = model(x=x, y=np.array([10, 20, 30], np.float32))
    assert isinstance(returned, dict), returned
    assert all(isinstance(value, np.ndarray) for value in returned.values()), returned
    results[name] = {key: value.tolist() for key, value in returned.items()}
assert not any(name.split(".")[0] == "ingot" for name in sys.modules)
print(json.dumps(results))
"""


def test_neuropod_s_loader_runs_every_kind_of_python_package(package: Path, work: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    nets = work / "nets"
    nets.mkdir()
    (nets / "net.py").write_text(ADD_MODULE)
    (nets / "plain.py").write_text(ADD_POSITIONAL)
    save_file({"scale": torch.full((1,), 2.0)}, nets / "double.safetensors")
    torch.save({"state_dict": {"scale": torch.full((1,), 3.0)}}, nets / "triple.pt")
    out = work / "out"
    paths = {"python": package}
    paths["pytorch"] = ingot.create_pytorch_package(
        out / "pytorch",
        "adder",
        code_path_spec=[{"python_root": nets, "dirs_to_package": [""]}],
        entrypoint_package="net",
        entrypoint="load",
        package_as_zip=False,
        **SPECS,
        **TEST,
    )
    tensors = {"inputs": SPECS["input_spec"], "outputs": SPECS["output_spec"]}
    models: dict[str, dict[str, Any]] = {
        "safetensors": {
            "framework": "torch",
            "entrypoint": "net:build",
            "weights": "double.safetensors",
        },
        "checkpoint": {
            "framework": "torch",
            "entrypoint": "net:build",
            "weights": "triple.pt",
            "kwargs": {"offset": 7.0},
        },
        "positional": {"framework": "torch", "entrypoint": "net:Positional"},
        "callable": {"framework": "python", "entrypoint": "plain:build", "kwargs": {"offset": 5}},
    }
    for name, model in models.items():
        spec = nets / f"{name}.json"
        spec.write_text(json.dumps({"name": name, "model": model, **tensors}))
        paths[name] = ingot.package(spec, out / f"spec-{name}").path
    scratch = work / "scratch"
    scratch.mkdir()
    process = subprocess.run(
        [
            *(sys.executable, "-c", LOADER),
            json.dumps({name: str(path) for name, path in paths.items()}),
            str(scratch),
        ],
        capture_output=True,
        text=True,
        cwd=scratch,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    scales, offsets = {"safetensors": 2, "checkpoint": 3}, {"callable": 5, "checkpoint": 7}
    for name, outputs in json.loads(process.stdout).items():
        scale, offset = scales.get(name, 1), offsets.get(name, 0)
        expected = [scale * x + y + offset for x, y in ((2, 10), (3, 20), (4, 30))]
        assert outputs == {"out": expected}, name
        with ingot.load(paths[name], trust_code=True) as loaded:
            found = loaded.infer({"x": np.array([2, 3, 4], np.float32), "y": Y})
        assert found["out"].tolist() == expected, name
