"""What is the caller's stays the caller's: arrays, model state, folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import INPUT_SPEC, OUTPUT_SPEC, onnx_add, python_add, write

import ingot

F32 = np.float32
X = [{"name": "x", "dtype": "float32", "shape": ["n"]}]
OUT = [{"name": "out", "dtype": "float32", "shape": ["n"]}]


def code_package(folder: Path, create, text: str, **specs) -> Path:
    write(folder / "code" / "main.py", text)
    return create(
        folder / "model.ingot",
        "model",
        specs.get("inputs", X),
        specs.get("outputs", OUT),
        code_path_spec=[{"python_root": folder / "code", "dirs_to_package": [""]}],
        entrypoint_package="main",
        entrypoint="get_model",
    )


def test_a_python_model_that_writes_to_its_input(tmp_path: Path) -> None:
    path = code_package(
        tmp_path,
        ingot.create_python_package,
        """
        def get_model(data_root):
            def model(x):
                x += 1
                return {"out": x}

            return model
        """,
    )
    x = np.zeros(2, F32)
    with ingot.load(path, trust_code=True) as model:
        for _ in range(2):
            assert model.infer({"x": x})["out"].tolist() == [1, 1]
            assert x.tolist() == [0, 0]


PYTORCH = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(2.0))

    def forward(self, x):
        y = x[:1]
        if x.sum() > 10:
            y.mul_(2)
        return {"out": self.table, "same": x, "first": torch.relu_(y)}


def get_model(data_root):
    return Net()
"""
OUTPUTS = [{"name": name, "dtype": "float32", "shape": [None]} for name in ("out", "same", "first")]


def test_a_module_that_writes_through_a_view_and_returns_its_state(tmp_path: Path) -> None:
    path = code_package(tmp_path, ingot.create_pytorch_package, PYTORCH, outputs=OUTPUTS)
    with ingot.load(path, trust_code=True) as model:
        x = np.array([-3, 5], F32)
        found = model.infer({"x": x})
        assert x.tolist() == [-3, 5]
        assert found["first"].tolist() == [0]
        # What comes back is the caller's: changing it changes neither the model nor the input.
        for name in ("out", "same"):
            found[name][:] = 77
        assert x.tolist() == [-3, 5]
        assert model.infer({"x": x})["out"].tolist() == [0, 1]


def test_a_write_that_depends_on_the_data_is_said(tmp_path: Path, caplog) -> None:
    import torch

    class Sometimes(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            if x.sum() > 10:
                x.zero_()
            return {"out": x + 1}

    torch.jit.script(Sometimes()).save(str(tmp_path / "net.pt"))
    with ingot.load(tmp_path / "net.pt") as model:
        model.infer({"x": np.ones(2, F32)})
        large = np.full(2, 50, F32)
        model.infer({"x": large})
        assert "has written to its input 'x' in place" in caplog.text
        large[:] = 50
        assert model.infer({"x": large})["out"].tolist() == [1, 1]
        assert large.tolist() == [50, 50]


def test_a_variable_never_keeps_the_callers_array(tmp_path: Path) -> None:
    import tensorflow as tf

    class Previous(tf.Module):
        def __init__(self) -> None:
            self.last = tf.Variable(tf.zeros(4096))

        def __call__(self, x):
            before = self.last.read_value()
            self.last.assign(x)
            return {"before": before}

    tensors = {"dtype": "float32", "shape": [4096]}
    path = ingot.create_tensorflow_package(
        tmp_path / "previous",
        "previous",
        [{"name": "x", **tensors}],
        [{"name": "before", **tensors}],
        trackable_obj=Previous(),
    )
    buffer = np.zeros(4096 * 4 + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    aligned = buffer[start : start + 4096 * 4].view(F32)
    with ingot.load(path) as model:
        aligned[:] = 5
        model.infer({"x": aligned})
        aligned[:] = 9
        assert model.infer({"x": aligned})["before"].max() == 5


@pytest.mark.parametrize(
    "files",
    [
        {"manifest.json": "{}", "src/app.js": "x"},
        {"config.json": "{}", "0/data/model.onnx": "x", "notes.txt": "mine"},
    ],
    ids=["web app", "package with more"],
)
def test_force_removes_no_folder_of_the_users(
    files: dict[str, str], tmp_path: Path, ingot_cli
) -> None:
    onnx_add(tmp_path / "add.onnx")
    for name, text in files.items():
        write(tmp_path / "mine" / name, text)
    for flags in (["--force"], ["--force", "--dir"]):
        process = ingot_cli("package", "add.onnx", "-o", "mine", *flags)
        assert process.returncode == 2, process.stderr
        for name in files:
            assert (tmp_path / "mine" / name).exists()


def test_two_python_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one" / "tables.py", "OFFSET = 5\n")
    text = "def get_model(data_root):\n    return lambda x: {'out': x + 1}\n"
    write(tmp_path / "two" / "entry.py", text)
    monkeypatch.setenv("HOME", str(tmp_path))
    roots = [{"python_root": f"~/{name}", "dirs_to_package": [""]} for name in ("one", "two")]
    arguments = {"entrypoint_package": "entry", "entrypoint": "get_model"}
    path = ingot.create_python_package(
        tmp_path / "out",
        "m",
        X,
        OUT,
        code_path_spec=roots,
        test_input_data={"x": np.ones(1, F32)},
        **arguments,
    )
    names = {entry["name"] for entry in ingot.inspect(path)["files"]}
    assert {"0/code/tables.py", "0/code/entry.py"} <= names
    for bad in (
        {"python_rot": "~/one", "dirs_to_package": [""]},
        {**roots[0], "dirs_to_package": [".."]},
    ):
        with pytest.raises(ingot.SpecError):
            ingot.create_python_package(
                tmp_path / "bad", "m", X, OUT, code_path_spec=[bad], **arguments
            )


def test_byte_code_in_a_directory_is_neither_read_nor_refused(tmp_path: Path, ingot_cli) -> None:
    path = ingot.package(python_add(tmp_path), tmp_path / "add", as_directory=True).path
    cache = path / "0" / "code" / "__pycache__"
    cache.mkdir()
    (cache / "add.cpython-311.pyc").write_bytes(b"stale")
    process = ingot_cli("infer", path, "--trust-code", "-i", "x=[1]", "-i", "y=[2]", "-o", "-")
    assert process.stdout == '{"out": [3.0]}\n', process.stderr
    assert ingot_cli("verify", path, "--no-golden").returncode == 0


THREADS = """
import sys

import numpy as np

import ingot

with ingot.load(sys.argv[1], threads=1) as model:
    model.infer({"x": np.ones(2, np.float32), "y": np.ones(2, np.float32)})
    print(model._model.session._config.intra_op_parallelism_threads)
"""


def test_threads_of_a_graph(tmp_path: Path) -> None:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        x, y = (tf.compat.v1.placeholder(tf.float32, [None], name=name) for name in "xy")
        tf.add(x, y, name="out")
    path = ingot.create_tensorflow_package(
        tmp_path / "add",
        "add",
        INPUT_SPEC,
        OUTPUT_SPEC,
        graph_def=graph.as_graph_def(),
        node_name_mapping={name: name for name in ("x", "y", "out")},
    )
    process = subprocess.run(
        [sys.executable, "-c", THREADS, str(path)], capture_output=True, text=True, check=False
    )
    assert process.stdout.strip() == "1", process.stderr


MAKERS = """
import sys
from pathlib import Path

import numpy as np

import ingot

kind, path = sys.argv[1:]
tensors = [{"name": "x", "dtype": "float32", "shape": ["n", 3]}]
outputs = [{"name": "out", "dtype": "float32", "shape": ["n", 2]}]
if kind == "torchscript":
    import torch

    torch.manual_seed(0)
    module = torch.jit.script(torch.nn.Linear(3, 2))
    ingot.create_torchscript_package(path, "m", tensors, outputs, module=module)
elif kind == "trackable":
    import tensorflow as tf

    class Linear(tf.Module):
        def __init__(self):
            self.weight = tf.Variable(tf.ones((3, 2)))

        def __call__(self, x):
            return {"out": x @ self.weight}

    ingot.create_tensorflow_package(path, "m", tensors, outputs, trackable_obj=Linear())
else:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    ingot.create_keras_package(path, "m", tensors, outputs, model=model, platform=kind)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "trackable", "keras", "tensorflow"])
def test_live_models_give_the_same_bytes_in_every_process(kind: str, tmp_path: Path) -> None:
    made = []
    # PyTorch writes constants in the order of a set, which PYTHONHASHSEED decides.
    for seed in ("1", "1" if kind == "torchscript" else "2"):
        path = tmp_path / str(len(made))
        process = subprocess.run(
            [sys.executable, "-c", MAKERS, kind, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        made.append(path.read_bytes())
    assert made[0] == made[1]
