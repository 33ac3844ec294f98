"""What cannot be exported: which message, which exit code, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import exports
import networks
import numpy as np
import pytest
from conftest import IngotCli
from exports import listing, torch_spec
from models import onnx_add, python_add, torchscript_add, write

import ingot
from ingot.errors import IngotError, ModelError, SpecError, UsageError

BRANCH = """
    import torch
    from torch import nn


    class Gate(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x * 2
            return -x


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = Gate()

        def forward(self, x):
            return self.gate(x) + 1


    def build():
        return Net()
"""


def network(returned: str, *, before: str = "pass") -> str:
    """Return the code of a module that computes one line, then returns an expression of ``x``."""
    return f"""
        import torch
        from torch import nn


        class Inner(nn.Module):
            def forward(self, x):
                {before}
                return {returned}


        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Inner()

            def forward(self, x):
                return self.inner(x)


        def build():
            return Net()
    """


def refused(source: Path, out: Path, formats: Any = "onnx", **options: Any) -> IngotError:
    """Export, which has to fail and to leave nothing; return the error."""
    with pytest.raises(IngotError) as raised:
        ingot.export(source, formats, out, **options)
    assert not out.exists()
    assert "\n" not in raised.value.message
    return raised.value


@pytest.mark.slow
def test_control_flow_that_depends_on_data(tmp_path: Path, ingot_cli: IngotCli) -> None:
    spec = torch_spec(tmp_path, BRANCH, "x: [n, 3]", "y: [n, 3]")
    for form in ("pt2", "onnx"):
        error = refused(spec, tmp_path / "out", form)
        assert error.exit_code == 5
        assert "control flow depends on data in gate (Gate) at net.py:7: if x.sum() > 0:" in str(
            error
        )
        assert "torch.where" in str(error.hint)
    done = ingot_cli("export", spec, "--format", "onnx", "-o", "out")
    assert done.returncode == 5
    assert done.stderr.count("net.py:7") == 1
    assert "Traceback" not in done.stderr
    assert listing(tmp_path / "out") == []


def test_torchscript_keeps_such_control_flow(tmp_path: Path) -> None:
    spec = torch_spec(tmp_path, BRANCH, "x: [n, 3]", "y: [n, 3]")
    result = ingot.export(spec, "jit", tmp_path / "out")
    for sign in (1, -1):
        x = np.full((2, 3), sign, np.float32)
        actual = exports.run_jit(result.artifacts[0].path, {"x": x}, ["y"])
        np.testing.assert_array_equal(actual["y"], (2 * x if sign > 0 else -x) + 1)


def test_torchscript_that_can_be_neither_scripted_nor_traced(tmp_path: Path) -> None:
    code = network("x if x.sum() > 0 else -x", before="type(self).__name__")
    spec = torch_spec(tmp_path, code, "x: [n, 3]", "y: [n, 3]")
    error = refused(spec, tmp_path / "out", "jit")
    assert error.exit_code == 5
    assert "control flow depends on data at net.py:8" in str(error)
    assert "cannot be scripted" in str(error)


@pytest.mark.slow
def test_an_operator_without_a_counterpart(tmp_path: Path) -> None:
    code = network("torch.special.bessel_j1(x)")
    spec = torch_spec(tmp_path, code, "x: [n, 3]", "y: [n, 3]")
    error = refused(spec, tmp_path / "out")
    assert isinstance(error, ModelError)
    assert "the operator prims.bessel_j1" in str(error)
    assert "in inner (Inner) at net.py:8" in str(error)
    assert "has no counterpart in any opset of ONNX" in str(error)
    assert "--format pt2 and jit" in str(error.hint)
    assert ingot.export(spec, "jit", tmp_path / "out").artifacts[0].parity.worst.scaled == 0


def test_an_operator_of_another_maker(tmp_path: Path) -> None:
    """An ONNX file that holds an operator of a domain that nothing here knows."""
    import onnx
    from onnx import helper

    path = onnx_add(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, path)
    error = refused(path, tmp_path / "out")
    assert error.exit_code == 5
    assert "Add" in str(error)
    assert "com.example" in str(error)


@pytest.mark.parametrize(
    ("name", "resolution"), [("unet", (30, 30)), ("digits_cnn", (16, 16))], ids=["unet", "digits"]
)
def test_a_resolution_that_the_network_cannot_take(
    tmp_path: Path, name: str, resolution: tuple[int, int]
) -> None:
    spec = networks.NETWORKS[name](tmp_path)
    error = refused(spec, tmp_path / "out", resolutions=[resolution])
    assert error.exit_code == 5
    assert " at {}x{}".format(*resolution) in str(error)
    assert f"{name}.yaml" in str(error)
    assert error.hint == "give a --resolution that the network takes"


@pytest.mark.parametrize(
    ("make", "form", "module", "extra"),
    [
        (networks.keras_lstm, "onnx", "tf2onnx", "onnx"),
        (networks.lstm, "tflite", "litert_torch", "tflite-torch"),
        (networks.lstm, "onnx", "onnxscript", "onnx"),
        (networks.lstm, "openvino", "openvino", "openvino"),
    ],
)
def test_a_missing_converter(
    tmp_path: Path, ingot_cli: IngotCli, make: Any, form: str, module: str, extra: str
) -> None:
    """Of any format asked for: what could be made of the others is not begun."""
    spec = make(tmp_path / "code")
    blocked = write(
        tmp_path / "blocked" / "sitecustomize.py", f"import sys; sys.modules[{module!r}] = None"
    )
    done = ingot_cli(
        *("export", spec, "--format", "safetensors", "--format", form, "-o", "out", "--json"),
        env={"PYTHONPATH": str(blocked.parent)},
    )
    assert done.returncode == 6, done.stderr
    error = json.loads(done.stdout)["error"]
    assert f"needs {module}, which is not installed" in error["message"]
    assert error["hint"] == f"pip install 'ingot[{extra}]'"
    assert listing(tmp_path) == ["blocked", "code"]


RETURNS = [
    ("None", ["y: [n, 3]"], "the model returned None; expected 1 output: y"),
    ("(x, (x, x + 1))", ["y1: [n, 3]", "y2: [n, 3]"], "returned a tuple of 2 as output 'y2'"),
    ("(x, x + 1)", ["y: [n, 3]"], "the model returned 2 values; expected 1 output: y"),
    ("x * 2", ["y1: [n, 3]", "y2: [n, 3]"], "returned one bare Tensor; expected 2 outputs"),
    ("{'a': x * 2}", ["y: [n, 3]"], "did not return the output 'y'; found 'a'"),
    ("{'y': 3}", ["y: [n, 3]"], "returned a int as output 'y'; expected a tensor"),
    ("(x, x)", ["y1: [n, 3]", "y2: [n, 3]"], "returned one tensor under two names: y1, y2"),
    ("[{'y': x * 2}, {'y': x + 1}]", ["y: [n, 3]"], "returned the output 'y' twice"),
    ("x @ x", ["y: [n, 3]"], "mat1 and mat2"),
]


@pytest.mark.parametrize(("returned", "outputs", "message"), RETURNS)
def test_outputs_that_cannot_be_exported(
    tmp_path: Path, returned: str, outputs: list[str], message: str
) -> None:
    spec = torch_spec(tmp_path, network(returned), "x: [n, 3]", *outputs)
    error = refused(spec, tmp_path / "out")
    assert error.exit_code == 5
    assert message in str(error)
    assert "net.yaml" in str(error)


@pytest.mark.slow
def test_nested_dicts_are_flattened_by_name(tmp_path: Path) -> None:
    code = network("{'z': {'deep': {'a': x * 2}, 'b': x.sum(1)}, 'y': {'c': x + 1}}")
    outputs = ("y.c: [n, 3]", "yes: [n]")
    spec = torch_spec(tmp_path, code, "x: [n, 3]", *outputs)
    text = spec.read_text().replace("yes", "z.b")
    spec.write_text(f"{text}- {{name: z.deep.a, dtype: float32, shape: [n, 3]}}\n")
    result = ingot.export(spec, ["onnx", "tflite"], tmp_path / "out", mode="both")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    actual = exports.run_onnx(result.artifacts[0].path, {"x": x})
    expected = {"y.c": x + 1, "z.b": x.sum(1), "z.deep.a": x * 2}
    assert exports.worst(expected, actual) < 1e-6
    assert list(actual) == ["y.c", "z.b", "z.deep.a"]


def test_duplicate_names_in_the_spec(tmp_path: Path) -> None:
    spec = torch_spec(tmp_path, network("x"), "x: [n, 3]", "y: [n, 3]", "y: [n, 3]")
    error = refused(spec, tmp_path / "out")
    assert isinstance(error, SpecError)
    assert "'y'" in str(error)


def test_an_output_folder_that_cannot_be_written(tmp_path: Path, ingot_cli: IngotCli) -> None:
    source = onnx_add(tmp_path / "add.onnx")
    file = tmp_path / "file"
    file.write_text("mine")
    places = [file, file / "below"]
    if sys.platform == "linux":
        places.append(Path("/proc/ingot-export"))
    if os.name == "posix" and os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        places.append(closed / "below")
    for place in places:
        with pytest.raises(UsageError, match=r"cannot be written to: ") as raised:
            ingot.export(source, "onnx", place)
        assert str(place) in str(raised.value)
    assert file.read_text() == "mine"
    done = ingot_cli("export", source, "--format", "onnx", "-o", file / "below")
    assert done.returncode == 2
    assert "cannot be written to" in done.stderr


def test_formats_that_are_not_there(tmp_path: Path) -> None:
    source = onnx_add(tmp_path / "add.onnx")
    error = refused(source, tmp_path / "out", "coreml")
    assert error.exit_code == 2
    expected = "onnx, jit, pt2, savedmodel, tflite, openvino, safetensors"
    assert f"unknown format 'coreml'; expected one of {expected}" in str(error)
    # Nothing is made of the good one either.
    error = refused(source, tmp_path / "out", ["onnx", "coreml"])
    assert "unknown format 'coreml'" in str(error)


def test_a_closed_format(tmp_path: Path, ingot_cli: IngotCli) -> None:
    source = onnx_add(tmp_path / "add.onnx")
    done = ingot_cli("export", source, "--format", "dlrt", "-o", "out")
    assert done.returncode == 2
    assert "closed format" in done.stderr
    assert "its open counterpart is ONNX" in done.stderr
    assert listing(tmp_path) == ["add.onnx"]


def test_python_models(tmp_path: Path) -> None:
    error = refused(python_add(tmp_path), tmp_path / "out")
    assert error.exit_code == 2
    assert "Python code cannot be exported to onnx; possible: nothing" in str(error)
    assert "ingot package" in str(error.hint)


def test_a_bare_torchscript_file_tells_no_shapes(tmp_path: Path) -> None:
    path = torchscript_add(tmp_path / "add.pt")
    error = refused(path, tmp_path / "out", "jit")
    assert error.exit_code == 2
    assert "does not say the types and shapes of its tensors (x, y" in str(error)
    assert "ingot init" in str(error.hint)


def test_string_inputs(tmp_path: Path) -> None:
    spec = torch_spec(tmp_path, network("x"), "x: string [n]", "y: string [n]")
    for form in ("onnx", "jit", "pt2", "tflite"):
        error = refused(spec, tmp_path / "out", form)
        assert error.exit_code in (2, 5)
        assert "string" in str(error)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name in ("net.onnx", "net.keras", "net.pt"):
        path = tmp_path / name
        path.write_bytes(b"nothing that is one")
        error = refused(path, tmp_path / "out")
        assert error.exit_code == 5
        assert str(path) in str(error)
    assert refused(tmp_path / "missing.onnx", tmp_path / "out").exit_code == 5
