"""``ingot infer``: inputs from the shell and files, outputs, streaming, timing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import onnx_add, torchscript_add, write

import ingot
from ingot.commands.tensor_io import encode_outputs, parse_assignment, to_array, to_json_values


@pytest.fixture(scope="module")
def add(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_add(tmp_path_factory.mktemp("add") / "add.onnx")


def test_inline_files_and_stdin(add: Path, tmp_path: Path, ingot_cli) -> None:
    np.save(tmp_path / "x.npy", np.array([1, 2], np.float32))
    write(tmp_path / "y.json", "[10, 20]")
    process = ingot_cli("infer", add, "-i", "x=x.npy", "-i", "y=@y.json", "-o", "-")
    assert json.loads(process.stdout) == {"out": [11.0, 22.0]}
    process = ingot_cli("infer", add, "--inputs", "-", "-o", "-", input='{"x": [1], "y": [2.5]}')
    assert json.loads(process.stdout) == {"out": [3.5]}
    np.savez(tmp_path / "in.npz", x=np.zeros(2, np.float32), y=np.ones(2, np.float32))
    data = (tmp_path / "in.npz").read_bytes()
    process = ingot_cli("infer", add, "--inputs", "-", "-i", "y=[5, 6]", "-o", "-", input=data)
    assert json.loads(process.stdout) == {"out": [5.0, 6.0]}
    process = ingot_cli("infer", add, "--inputs", "in.npz", "-o", "out.npz")
    assert process.returncode == 0, process.stderr
    assert np.load(tmp_path / "out.npz")["out"].tolist() == [1, 1]


def test_what_a_person_sees(add: Path, ingot_cli) -> None:
    process = ingot_cli("infer", add, "-i", "x=[1, 2]", "-i", "y=[3, 4]")
    assert process.stdout == "out: float32 (2,)\n[4. 6.]\n"
    assert process.stderr == ""


def test_json_and_timing(add: Path, ingot_cli) -> None:
    arguments = ("-i", "x=[1]", "-i", "y=[3]", "--repeat", "5", "--warmup", "2", "--threads", "1")
    document = json.loads(ingot_cli("infer", add, *arguments, "--json").stdout)
    assert document["schema_version"] == 1
    assert document["outputs"]["out"] == {"dtype": "float32", "shape": [1], "values": [4.0]}
    timing = document["timing"]
    assert timing["calls"] == 5
    assert 0 < timing["min_ms"] <= timing["median_ms"] <= timing["max_ms"]
    process = ingot_cli("infer", add, *arguments, "--output", "out")
    assert "5 calls: median " in process.stdout


def test_a_bare_torchscript_file_takes_any_type(tmp_path: Path, ingot_cli) -> None:
    path = torchscript_add(tmp_path / "add.pt")
    process = ingot_cli("infer", path, "-i", "x=[1.5]", "-i", "y=[2]", "-o", "-")
    assert json.loads(process.stdout) == {"out": [3.5]}


def test_a_spec_can_be_run(tmp_path: Path, ingot_cli) -> None:
    from models import python_add

    spec = python_add(tmp_path)
    process = ingot_cli("infer", spec, "-i", "x=[1]", "-i", "y=[2]", "-o", "-")
    assert json.loads(process.stdout) == {"out": [3.0]}


def test_the_result_of_streaming_is_that_of_one_call(add: Path, tmp_path: Path, ingot_cli) -> None:
    x = np.arange(10, dtype=np.float32)
    np.savez(tmp_path / "in.npz", x=x, y=x)
    for rows in (1, 3, 10, 99):
        process = ingot_cli(
            "infer", add, "--inputs", "in.npz", "--batch-size", rows, "-o", f"{rows}.npz"
        )
        assert process.returncode == 0, process.stderr
        assert f"{rows}.npz (10 rows)" in process.stdout
        assert np.array_equal(np.load(tmp_path / f"{rows}.npz")["out"], 2 * x)
    np.savez(tmp_path / "uneven.npz", x=x, y=x[:4])
    process = ingot_cli(
        "infer", add, "--inputs", "uneven.npz", "--batch-size", 2, "-o", "uneven_out.npz"
    )
    assert process.returncode == 5
    assert "inputs of different lengths cannot be batched: x has 10, y has 4" in process.stderr
    assert not (tmp_path / "uneven_out.npz").exists()


def test_streaming_takes_bounded_memory(add: Path, tmp_path: Path) -> None:
    """400 MB of input and 200 MB of output go through in slices of 4 MB."""
    rows = 50_000_000
    with (tmp_path / "in.npz").open("wb") as file:
        np.savez(file, x=np.zeros(rows, np.float32), y=np.ones(rows, np.float32))
    program = (
        "import sys\n"
        "from ingot import infer\n"
        "files = {'inputs_file': sys.argv[2], 'output': sys.argv[3]}\n"
        "infer(sys.argv[1], (), **files, batch_size=1_000_000)\n"
        # ru_maxrss would count the memory of the process that started this one.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, add, tmp_path / "in.npz", tmp_path / "out.npz"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(process.stdout) < 250_000
    out = np.load(tmp_path / "out.npz")["out"]
    assert out.shape == (rows,)
    assert out.min() == out.max() == 1


def test_streaming_strings(tmp_path: Path, ingot_cli) -> None:
    write(
        tmp_path / "upper.py",
        """
        import numpy as np

        def build():
            return lambda text: {"upper": np.char.upper(text)}
        """,
    )
    spec = write(
        tmp_path / "upper.yaml",
        """
        name: upper
        model: {framework: python, entrypoint: upper:build}
        inputs: [{name: text, dtype: string, shape: [n]}]
        outputs: [{name: upper, dtype: string, shape: [n]}]
        """,
    )
    np.savez(tmp_path / "in.npz", text=np.array(["a", "bc", "defghi"]))
    arguments = ("--inputs", "in.npz", "--batch-size", 1, "-o", "out.npz")
    process = ingot_cli("infer", spec, *arguments)
    assert process.returncode == 0, process.stderr
    assert np.load(tmp_path / "out.npz")["upper"].tolist() == ["A", "BC", "DEFGHI"]
    process = ingot_cli("infer", spec, "-i", 'text=["x", "é"]', "-o", "-")
    assert json.loads(process.stdout) == {"upper": ["X", "É"]}


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([300], "uint8", "found 300; expected uint8, from 0 to 255"),
        ([-1], "uint8", "found -1; expected uint8"),
        ([1.5], "int32", "found numbers with a fraction; expected int32 values"),
        ([1], "bool", "found integers; expected bool values"),
        (["a"], "float32", "found strings; expected float32 values"),
        ([None], "float32", "found null"),
        ([1e39], "float32", "found a number too large for float32"),
        ([1], "string", "found integers; expected string values"),
    ],
)
def test_text_that_does_not_fit_a_dtype(value: object, dtype: str, message: str) -> None:
    spec = ingot.TensorSpec("x", dtype, (None,))
    with pytest.raises(ingot.InputError, match=message):
        to_array(value, spec, "-i x")


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("x=3", "int64", 3),
        ("x=2.0", "int32", 2),
        ("x=[]", "int32", []),
        ("x=hello", "string", "hello"),
        ('x=["a", "b"]', "string", ["a", "b"]),
        ("x=7", "string", "7"),
        ("x=a=b", "string", "a=b"),
        ("x=[[true, false]]", "bool", [[True, False]]),
        ('x=["NaN", "Infinity"]', "float32", [float("nan"), float("inf")]),
    ],
)
def test_inline_values(text: str, dtype: str, expected: object) -> None:
    name, array = parse_assignment(text, {"x": ingot.TensorSpec("x", dtype, None)})
    assert name == "x"
    np.testing.assert_array_equal(array, expected)  # type: ignore[arg-type]
    assert dtype == "string" or array.dtype == dtype


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["float32", "float64", "int8", "uint16", "int64", "bool"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
)
def test_outputs_survive_npz_and_json(array: np.ndarray) -> None:
    with np.load(io.BytesIO(encode_outputs({"out": array}, ".npz"))) as archive:
        np.testing.assert_array_equal(archive["out"], array)
    values = json.loads(encode_outputs({"out": array}, ".json"))["out"]
    spec = ingot.TensorSpec("out", array.dtype.name, None)
    again = to_array(values, spec, "out")
    np.testing.assert_array_equal(again.reshape(array.shape), array)


def test_json_output_is_strict() -> None:
    values = to_json_values(np.array([[np.nan, np.inf], [-np.inf, 1]]))
    assert values == [["NaN", "Infinity"], ["-Infinity", 1.0]]


def test_inputs_reach_the_framework_as_views(tmp_path: Path) -> None:
    """The model returns the address of what it got; it is that of the caller's array."""
    write(
        tmp_path / "code" / "main.py",
        """
        import torch

        class Net(torch.nn.Module):
            def forward(self, x):
                return {"address": torch.tensor(x.data_ptr())}

        def get_model(data_root):
            return Net()
        """,
    )
    path = ingot.create_pytorch_package(
        tmp_path / "address",
        "address",
        [{"name": "x", "dtype": "float32", "shape": ["n", 2]}],
        [{"name": "address", "dtype": "int64", "shape": []}],
        code_path_spec=[{"python_root": tmp_path / "code", "dirs_to_package": [""]}],
        entrypoint_package="main",
        entrypoint="get_model",
    )
    with ingot.load(path, trust_code=True) as model:
        for x in (np.ones((4, 2), np.float32), np.ones((8, 4), np.float32)[::2, 1:3]):
            assert model.infer({"x": x})["address"] == x.ctypes.data
        read_only = np.ones((4, 2), np.float32)
        read_only.flags.writeable = False
        assert model.infer({"x": read_only})["address"] != read_only.ctypes.data


def test_a_model_that_writes_to_its_input_is_said_once(tmp_path: Path, caplog) -> None:
    import torch

    class Increment(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            return {"out": x.add_(1)}

    torch.jit.script(Increment()).save(str(tmp_path / "inc.pt"))
    with ingot.load(tmp_path / "inc.pt") as model:
        x = np.zeros(2, np.float32)
        model.infer({"x": x})
        assert "the model writes to its input 'x' in place" in caplog.text
        before = x.copy()
        for _ in range(2):
            assert model.infer({"x": x})["out"].tolist() == (before + 1).tolist()
        assert np.array_equal(x, before)
