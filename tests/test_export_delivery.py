"""Where ``export`` puts files: their names, what they may replace, what a failure leaves."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import IngotCli
from exports import listing, torch_spec
from models import onnx_add, write

import ingot
from ingot.cli.console_export import print_export
from ingot.cli.options import Settings
from ingot.errors import CheckError, ModelError, OutputExistsError, UsageError

FILE = "addfp32_dynamic_shape.onnx"
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'ingot[openvino]'"
)


@pytest.fixture
def add(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return onnx_add(tmp_path / "source" / "add.onnx")


def package(folder: Path, name: str) -> Path:
    """Write a package as Neuropod lets one be, which has no manifest."""
    tensor = {"dtype": "float32", "shape": ["n"]}
    config = {
        "name": name,
        "platform": "onnx",
        "input_spec": [{"name": "x", **tensor}, {"name": "y", **tensor}],
        "output_spec": [{"name": "out", **tensor}],
    }
    (folder / "0" / "data").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    onnx_add(folder / "0" / "data" / "model.onnx")
    return folder


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../pwnd", ".._.._pwndfp32.onnx"),
        ("/tmp/pwnd", "_tmp_pwndfp32.onnx"),
        ("a\\b\x1b[31m\n", "a_b_[31m_fp32.onnx"),
    ],
)
def test_a_package_writes_nothing_outside_of_the_folder(
    name: str, file: str, tmp_path: Path
) -> None:
    odd = package(tmp_path / "odd", name)
    output = tmp_path / "deep" / "er" / "out"
    result = ingot.export(odd, "onnx", output, mode="fixed")
    assert result.name == name
    assert listing(output) == [file]
    assert listing(tmp_path) == ["deep", "odd"]


@pytest.mark.parametrize("name", ["..", "a\u202eb", "n" * 201])
def test_a_package_that_no_file_can_be_named_after(name: str, tmp_path: Path) -> None:
    odd = package(tmp_path / "odd", name)
    with ingot.load(odd) as model:  # only its use as a file name is refused
        assert model.name == name
    with pytest.raises(
        UsageError, match=r"the model's name: found .* can be a file name"
    ) as raised:
        ingot.export(odd, "onnx", tmp_path / "out")
    assert raised.value.hint == "give the files another one: --name STEM"
    ingot.export(odd, "onnx", tmp_path / "out", name="fine", mode="dynamic")
    assert listing(tmp_path / "out") == ["finefp32_dynamic_shape.onnx"]


def test_a_bare_file_whose_name_is_not_printable(add: Path, tmp_path: Path) -> None:
    odd = add.rename(add.with_name("a\x1b[2Jb.onnx"))
    ingot.export(odd, "onnx", tmp_path / "out", mode="dynamic")
    assert listing(tmp_path / "out") == ["a_[2Jbfp32_dynamic_shape.onnx"]
    hidden = odd.rename(odd.with_name("a\u202eb.onnx"))
    with pytest.raises(UsageError, match=r"the model's name: found 'a\\u202eb'"):
        ingot.export(hidden, "onnx", tmp_path / "out")


NAMES = [
    "../evil",
    "/abs",
    "a/b",
    "a\\b",
    "a\nb",
    "a\x1b[31mb",
    "n" * 300,
    "",
    ".",
    "..",
    "a\u202e",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--name: found .* expected a name that can be a file"):
        # Before any work: there is not even a model.
        ingot.export(tmp_path / "none.onnx", "onnx", tmp_path / "out", name=name)
    assert listing(tmp_path) == []


def test_a_name_that_is_none_exits_with_2(add: Path, tmp_path: Path, ingot_cli: IngotCli) -> None:
    done = ingot_cli(
        "export", add, "--format", "onnx", "-o", tmp_path / "out", "--name", "../\x1bx"
    )
    assert done.returncode == 2
    assert r"--name: found '../\x1bx'; expected" in done.stderr
    assert "\x1b" not in done.stderr
    assert listing(tmp_path) == ["source"]


# --- arguments of the function ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, "precision: found 'fp8'; expected one of fp32, fp16, bf16"),
        ({"mode": "none"}, "mode: found 'none'; expected one of both, dynamic, fixed"),
        ({"tolerance": float("inf")}, "--tolerance: found inf; expected a finite number"),
        ({"tolerance": float("nan")}, "--tolerance: found nan; expected a finite number"),
        ({"tolerance": -1.0}, "--tolerance: found -1.0; expected a finite number"),
    ],
)
def test_impossible_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        ingot.export(tmp_path / "none.onnx", "onnx", tmp_path / "out", **arguments)


# --- what may be replaced --------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_never_replaced_by_a_file(add: Path, tmp_path: Path, force: bool) -> None:
    mine = write(tmp_path / "out" / FILE / "mine.txt", "mine")
    said: list[str] = []
    with pytest.raises(OutputExistsError, match="is a folder; expected a file"):
        ingot.export(add, "onnx", tmp_path / "out", force=force, progress=said.append)
    assert len(said) == 1  # loading
    assert mine.read_text() == "mine"
    assert listing(tmp_path / "out") == [FILE]


@pytest.mark.parametrize("when", ["a folder", "a file"])
def test_what_appears_during_the_export_stays(add: Path, tmp_path: Path, when: str) -> None:
    mine = tmp_path / "out" / FILE

    def appear(line: str) -> None:
        if line.startswith("checking"):
            if when == "a folder":
                mine.mkdir()
            else:
                mine.write_text("mine")

    with pytest.raises(OutputExistsError, match="exists already"):
        ingot.export(
            add, "onnx", tmp_path / "out", mode="dynamic", force=when == "a folder", progress=appear
        )
    assert listing(tmp_path / "out") == [FILE]
    assert mine.is_dir() or mine.read_text() == "mine"


def test_a_link_is_replaced_and_not_followed(add: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine" / "mine.txt", "mine")
    (tmp_path / "out").mkdir()
    link, place = tmp_path / "out" / FILE, tmp_path / "out" / FILE
    for target in (mine, mine.parent, tmp_path / "nowhere"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(OutputExistsError, match="exists already"):
            ingot.export(add, "onnx", tmp_path / "out", mode="dynamic")
        ingot.export(add, "onnx", tmp_path / "out", mode="dynamic", force=True)
        assert place.is_file()
        assert not place.is_symlink()
        assert mine.read_text() == "mine"
        assert listing(tmp_path) == ["mine", "out", "source"]
        assert listing(tmp_path / "out") == [FILE]


@needs_openvino
def test_a_failure_puts_back_what_was_there(
    add: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses the last of three files."""
    output, last = tmp_path / "out", "addfp32_dynamic_shape.bin"
    for name in (FILE, last, "other.txt"):
        write(output / name, f"old {name}")
    before = {path.name: path.read_text() for path in output.iterdir()}
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if Path(target) == output / last and Path(source).name == last:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UsageError, match="cannot be written to: No space left on device"):
        ingot.export(add, ["onnx", "openvino"], output, mode="dynamic", force=True)
    assert {path.name: path.read_text() for path in output.iterdir()} == before


def test_what_cannot_be_put_back_is_kept(
    add: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    write(output / FILE, "old")
    rename = os.rename

    def broken(source: Path, target: Path) -> None:
        if Path(target) == output / FILE:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    monkeypatch.setattr(logging.getLogger("ingot"), "propagate", True)
    with pytest.raises(UsageError, match="Input/output error"):
        ingot.export(add, "onnx", output, mode="dynamic", force=True)
    (kept,) = (path for path in output.rglob("*") if path.is_file() and path.name == "0")
    assert kept.read_text() == "old"
    assert f"{output / FILE}: what was there is now {kept}" in caplog.text


# --- files beside an ONNX file ---------------------------------------------------------------


def test_old_weights_beside_a_file_go_with_it(add: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    stale = write(output / f"{FILE}.data", "old weights")
    with pytest.raises(OutputExistsError, match=r"\.onnx\.data: exists already"):
        ingot.export(add, "onnx", output, mode="dynamic")
    assert stale.read_text() == "old weights"
    ingot.export(add, "onnx", output, mode="dynamic", force=True)
    assert listing(output) == [FILE]
    write(stale / "mine.txt", "mine")
    with pytest.raises(OutputExistsError, match=r"\.onnx\.data: exists already, and is a folder"):
        ingot.export(add, "onnx", output, mode="dynamic", force=True)


@pytest.mark.parametrize(
    "place",
    [f"{FILE}.data", pytest.param("addfp32_dynamic_shape.bin", marks=needs_openvino)],
)
def test_the_weights_of_the_source_are_never_replaced(place: str, tmp_path: Path) -> None:
    import onnx

    source = onnx_add(tmp_path / "add.onnx")
    model = onnx.load(source)
    (scale,) = model.graph.initializer
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(1), "scale"))
    onnx.save(model, source, save_as_external_data=True, location=place, size_threshold=0)
    before = (tmp_path / place).read_bytes()
    formats = "onnx" if place.endswith(".data") else "openvino"
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="would replace its own source"):
            ingot.export(source, formats, tmp_path, mode="dynamic", force=force)
    assert (tmp_path / place).read_bytes() == before
    assert listing(tmp_path) == sorted(["add.onnx", place])


# --- SavedModel folders ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    class Double(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
        def __call__(self, x: Any) -> Any:
            return {"out": x * 2}

    path = tmp_path_factory.mktemp("tensorflow") / "double"
    module = Double()
    tf.saved_model.save(module, str(path), signatures=module.__call__)
    return path


@pytest.mark.slow
def test_saved_models(saved_model: Path, tmp_path: Path) -> None:
    inside = saved_model / "assets" / "out"
    with pytest.raises(UsageError, match="lies inside of the model's own folder"):
        ingot.export(saved_model, "savedmodel", inside)
    assert not inside.exists()

    output = tmp_path / "out"
    mine = write(output / "double_savedmodel" / "mine.txt", "mine")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="is no SavedModel"):
            ingot.export(saved_model, "savedmodel", output, force=force)
    assert mine.read_text() == "mine"
    write(mine.with_name("saved_model.pb"), "old")
    ingot.export(saved_model, "savedmodel", output, force=True)
    assert not mine.exists()
    assert listing(output) == ["double_savedmodel"]

    (tmp_path / "file").mkdir()
    file = write(tmp_path / "file" / "double_savedmodel", "mine")
    with pytest.raises(OutputExistsError, match="is a file; expected a folder"):
        ingot.export(saved_model, "savedmodel", file.parent, force=True)

    secret = write(tmp_path / "secret.txt", "secret")
    link = saved_model / "assets" / "vocabulary.txt"
    for target, leads in (
        (secret, "out of the folder"),
        (tmp_path, "out of the folder"),
        (Path(".."), "to no file"),
        (Path("nothing"), "to no file"),
    ):
        link.symlink_to(target)
        message = f"the link 'assets/vocabulary.txt' leads {leads}"
        with pytest.raises(ModelError, match=message):
            ingot.export(saved_model, "savedmodel", tmp_path / "other")
        assert not (tmp_path / "other").exists()
        link.unlink()
    link.symlink_to("../saved_model.pb")
    ingot.export(saved_model, "savedmodel", tmp_path / "other")
    copied = tmp_path / "other" / "double_savedmodel" / "assets" / "vocabulary.txt"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (saved_model / "saved_model.pb").read_bytes()


# --- what is printed -------------------------------------------------------------------------


def test_the_range_of_a_metric(
    add: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ingot.export(add, "onnx", tmp_path / "out", mode="dynamic")
    (artifact,) = result.artifacts

    def printed(*metrics: dict[str, float] | None) -> str:
        artifacts = tuple(
            dataclasses.replace(artifact, path=Path(f"out/{index}.onnx"), metrics=found)
            for index, found in enumerate(metrics)
        )
        changed = dataclasses.replace(
            result, artifacts=artifacts, reference_metrics={"error": 0.25}
        )
        print_export(changed)
        return next(line for line in capsys.readouterr().out.splitlines() if "error" in line)

    assert printed(None) == "error 0.25; no file takes the data's size"
    assert printed({"error": 0.25}, None) == "error 0.25; of the files 0.25"
    assert (
        printed({"error": 0.5}, None, {"error": 0.125})
        == "error 0.25; of the files 0.125 (2.onnx) to 0.5 (0.onnx)"
    )


def test_json_has_null_for_what_is_no_finite_number(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"a": [1.5, float("inf"), {"b": (float("nan"), -1)}], "c": "NaN", "d": True}
    Settings(json=True).print_json(values)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {
        "schema_version": 1,
        "a": [1.5, None, {"b": [None, -1]}],
        "c": "NaN",
        "d": True,
    }


def test_rounding_is_no_randomness(tmp_path: Path) -> None:
    """A source that is not quite the same each time, and a file that is wrong."""
    code = """
        import torch

        class Net(torch.nn.Module):
            def forward(self, x, **unscriptable):
                y = x + 1e-7 * torch.rand_like(x)
                return y + 1 if len(x) == 3 else y

        def build():
            return Net()
    """
    spec = torch_spec(tmp_path / "code", code, "x: [n, 4]", "y: [n, 4]")
    with pytest.raises(CheckError) as raised:
        ingot.export(spec, "jit", tmp_path / "out", tolerance=1e-4)
    assert "differs" in raised.value.message
    assert "the source itself" not in raised.value.message
