"""``ingot infer``: inputs from the shell and files, outputs, streaming, timing."""

from __future__ import annotations

import errno
import io
import json
import os
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
        ([1e300], "bfloat16", "found a number too large for bfloat16"),
        ([1.5, "nan"], "float32", "found strings; expected float32 values"),
        ([1, [2]], "float32", "the nested lists are not of equal lengths"),
        ([None], None, "found null"),
    ],
)
def test_text_that_does_not_fit_a_dtype(value: object, dtype: str | None, message: str) -> None:
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
        ('x=[[1.5, "NaN"], ["-Infinity", 2]]', "float64", [[1.5, np.nan], [-np.inf, 2]]),
        ("x=1e400", "string", "1e400"),
    ],
)
def test_inline_values(text: str, dtype: str, expected: object) -> None:
    name, array = parse_assignment(text, {"x": ingot.TensorSpec("x", dtype, None)})
    assert name == "x"
    np.testing.assert_array_equal(array, expected)  # type: ignore[arg-type]
    assert dtype == "string" or array.dtype == dtype


@pytest.mark.parametrize(
    ("text", "dtype", "shape", "message"),
    [
        ("[" * 2000 + "]" * 2000, "float32", None, "nested 2000 deep; expected at most 64"),
        ("[" * 70 + "1" + "]" * 70, "float32", None, "nested 70 deep; expected at most 64"),
        ("[" * 70 + "1" + "]" * 70, "int8", ("n", 2), r"nested 70 deep; expected 2, \(n, 2\)"),
        ('["[[[", ' + "[" * 1500 + "]" * 1500 + "]", None, None, "nested 1501 deep"),
        ("1e400", "float32", None, "found a number too large for float32: 1e400"),
        ("[1, -1e400]", "int32", None, "found a number too large for int32: -1e400"),
        ("[1e999]", None, None, "found a number too large for float64: 1e999"),
        ("1" * 5000, "float32", None, r"found '1{60}\.\.\.'; expected"),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_json_that_no_array_can_hold(
    text: str,
    dtype: str | None,
    shape: tuple[str | int, ...] | None,
    message: str,
    in_file: bool,
    tmp_path: Path,
) -> None:
    (tmp_path / "x.json").write_text(text)
    if in_file and text.isdigit():
        message = "not valid JSON"
    value = f"@{tmp_path / 'x.json'}" if in_file else text
    with pytest.raises(ingot.InputError, match=message):
        parse_assignment(f"x={value}", {"x": ingot.TensorSpec("x", dtype, shape)})


def test_npy_files_that_cannot_be_read(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.ones(4))
    data = (tmp_path / "good.npy").read_bytes()
    contents = {
        "short": (data[:-3], "found 29 bytes of values; expected 32"),
        "header": (data[:20], "damaged: it ends within its header"),
        "none": (b"", "found 0 bytes that are no array"),
        "text": (b"1, 2, 3, 4", "found 10 bytes that are no array"),
        "version": (data[:6] + b"\7" + data[7:], "found format 7.0; expected 1.0 or 2.0"),
        "long": (data[:6] + b"\2\0" + b"\xff" * 4 + data[10:], "found a header of 4294967295"),
        "syntax": (data.replace(b"(4,)", b"(-4,"), "damaged header: "),
        "float": (data.replace(b"(4,)", b"(4.)"), "damaged header: "),
        "negative": (data.replace(b"(4,), ", b"(-4,),"), r"found float64 \(-4,\), which is no"),
        "npz": (b"PK\3\4", "found an .npz archive; expected a .npy file"),
    }
    for name, (content, message) in contents.items():
        path = tmp_path / f"{name}.npy"
        path.write_bytes(content)
        with pytest.raises(ingot.InputError, match=message) as info:
            parse_assignment(f"x={path}", {})
        assert f"-i x: {path}: " in info.value.message
    with pytest.raises(ingot.InputError, match="cannot be read: No such file"):
        parse_assignment(f"x={tmp_path}/missing.npy", {})


def test_an_output_named_twice_is_computed_once(add: Path, ingot_cli) -> None:
    arguments = ("-i", "x=[1]", "-i", "y=[3]", "--output", "out", "--output", "out", "-o", "-")
    process = ingot_cli("infer", add, *arguments)
    assert json.loads(process.stdout) == {"out": [4.0]}, process.stderr


def test_written_files_respect_the_umask(add: Path, tmp_path: Path, monkeypatch) -> None:
    arguments = {"x": np.zeros(2, np.float32), "y": np.ones(2, np.float32)}
    for mask, mode in ((0o027, 0o640), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            ingot.infer(add, arguments, output=str(tmp_path / "out.json"), force=True)
        finally:
            os.umask(before)
        assert (tmp_path / "out.json").stat().st_mode & 0o777 == mode

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ingot.IngotError, match="cannot be written: No space") as info:
        ingot.infer(add, arguments, output=str(tmp_path / "out.npz"))
    assert info.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


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


def test_a_model_that_writes_to_its_input_gets_a_copy(tmp_path: Path) -> None:
    import torch

    class Increment(torch.nn.Module):
        def forward(self, x: torch.Tensor):
            return {"out": x.add_(1)}

    torch.jit.script(Increment()).save(str(tmp_path / "inc.pt"))
    with ingot.load(tmp_path / "inc.pt") as model:
        x = np.zeros(2, np.float32)
        for _ in range(2):
            assert model.infer({"x": x})["out"].tolist() == [1, 1]
            assert x.tolist() == [0, 0]
