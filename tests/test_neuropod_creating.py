"""The packagers take what Neuropod's took, and Neuropod can run what they write."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
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
from ingot.packagers.base import PackageArguments, PackageOptions

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


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("format"))


@pytest.fixture(scope="module")
def package(work: Path) -> Path:
    """A Python package, a zip."""
    path = work / "out" / "python.zip"
    return ingot.create_python_package(path, "adder", **python_arguments(work), **TEST)


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
    common = {"path", "model_name", "input_spec", "output_spec"}
    assert common | OWN[kind] | set(COMMON) <= set(parameters)
    assert {name: parameters[name].default for name in COMMON} == COMMON
    kinds = {parameter.kind for parameter in parameters.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


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
        "import os\ndef load(data_root):\n    assert not os.listdir(data_root)\n    return dict\n"
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
    path = create("graph", graph_def=graph, node_name_mapping=nodes, init_op_names="init", **TEST)
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
    del config["ingot"]  # an early package of Neuropod's, which has no manifest
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


@pytest.mark.slow
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
        weights=nets / "double.safetensors",
        package_as_zip=False,
        **SPECS,
    )
    tensors = {"inputs": SPECS["input_spec"], "outputs": SPECS["output_spec"]}
    models: dict[str, dict[str, Any]] = {
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
            # -B: byte code in a package that is a directory would be files of no manifest.
            *(sys.executable, "-B", "-c", LOADER),
            json.dumps({name: str(path) for name, path in paths.items()}),
            str(scratch),
        ],
        capture_output=True,
        text=True,
        cwd=scratch,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    scales, offsets = {"pytorch": 2, "checkpoint": 3}, {"callable": 5, "checkpoint": 7}
    for name, outputs in json.loads(process.stdout).items():
        scale, offset = scales.get(name, 1), offsets.get(name, 0)
        expected = [scale * x + y + offset for x, y in ((2, 10), (3, 20), (4, 30))]
        assert outputs == {"out": expected}, name
        with ingot.load(paths[name], trust_code=True) as loaded:
            found = loaded.infer({"x": np.array([2, 3, 4], np.float32), "y": Y})
        assert found["out"].tolist() == expected, name
