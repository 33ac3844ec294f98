"""Importing or running Ingot writes nothing outside of its own outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import onnx_add, torch_scale, torchscript_add

import ingot

INPUTS = {name: np.ones(2, np.float32) for name in "xy"}
TENSORS = [{"name": name, "dtype": "float32", "shape": ["n"]} for name in "xy"]
OUT = [{"name": "out", "dtype": "float32", "shape": ["n"]}]

PROGRAM = """
import sys
import numpy as np
import ingot
with ingot.load(sys.argv[1], trust_code=True) as model:
    print(model.infer({name: np.ones(2, np.float32) for name in "xy"})["out"])
"""


def keras_add(path: Path) -> Path:
    import keras

    x, y = (keras.Input((), name=name) for name in "xy")
    keras.Model([x, y], keras.layers.Add(name="out")([x, y])).save(path)
    return path


def tensorflow_add(path: Path) -> Path:
    import tensorflow as tf

    class Add(tf.Module):
        def __call__(self, x: object, y: object) -> dict[str, object]:
            return {"out": x + y}  # type: ignore[operator]

    return ingot.create_tensorflow_package(path, "add", TENSORS, OUT, trackable_obj=Add())


def make(kind: str, folder: Path) -> Path:
    if kind == "onnx":
        return onnx_add(folder / "add.onnx")
    if kind == "torch":
        return ingot.package(torch_scale(folder), folder / "scale.ingot").path
    if kind == "tensorflow":
        return tensorflow_add(folder / "add.ingot")
    if kind == "keras":
        return keras_add(folder / "add.keras")
    torchscript_add(folder / "add.pt")
    return ingot.create_torchscript_package(
        folder / "add.ingot", "add", TENSORS, OUT, module_path=folder / "add.pt"
    )


@pytest.mark.parametrize("kind", ["onnx", "torch", "torchscript", "tensorflow", "keras"])
def test_an_empty_home_stays_empty(kind: str, tmp_path: Path) -> None:
    model = make(kind, tmp_path)
    home, temporary, work = (tmp_path / name for name in ("home", "tmp", "work"))
    for folder in (home, temporary, work):
        folder.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "KERAS_", "ORT_", "TMP", "TEMP"))
    }
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == ("[4. 4.]" if kind == "torch" else "[2. 2.]")
    for folder in (home, temporary, work):
        assert [path.name for path in folder.rglob("*")] == []


def test_the_commands_leave_an_empty_home_empty(
    tmp_path: Path, empty_home: Path, ingot_cli
) -> None:
    spec = torch_scale(tmp_path)
    before = {path.name for path in tmp_path.rglob("*")}
    package = tmp_path / "scale.ingot"
    for arguments in (
        ["package", spec, "-o", package],
        ["inspect", package],
        ["verify", package, "--trust-code"],
        ["infer", package, "--trust-code", "-i", "x=[1]", "-i", "y=[2]"],
    ):
        process = ingot_cli(*arguments)
        assert process.returncode == 0, process.stderr
    assert list(empty_home.rglob("*")) == []
    assert {path.name for path in tmp_path.rglob("*")} == before | {"scale.ingot"}
