"""Bad input gives one clear line, the documented exit code, no traceback, and leaves nothing."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from models import SPEC_TENSORS, onnx_add, python_add, torch_scale, torchscript_add, write

import ingot


def refused(process: subprocess.CompletedProcess, code: int, *parts: str) -> str:
    """Check that a command failed as documented; return its line of error."""
    lines = process.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert process.returncode == code, process.stderr
    assert len(errors) == 1, process.stderr
    assert "Traceback" not in process.stderr
    for part in parts:
        assert part in process.stderr, process.stderr
    assert process.stdout == ""
    return errors[0]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good package of an ONNX model, with golden data."""
    folder = tmp_path_factory.mktemp("good")
    inputs = {"x": np.ones(3, np.float32), "y": np.ones(3, np.float32)}
    return ingot.create_onnx_package(
        folder / "add.ingot",
        "add",
        model_path=onnx_add(folder / "add.onnx"),
        test_input_data=inputs,
    )


@pytest.fixture(scope="module")
def code_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good package of Python code."""
    folder = tmp_path_factory.mktemp("code")
    return ingot.package(python_add(folder), folder / "add.ingot").path


SPECS = {
    "unknown key": (
        "name: m\nmodel:\n  framework: onnx\n  fiel: m.onnx\n",
        ["spec.yaml:4: model.fiel: unknown key", "did you mean 'file'?"],
    ),
    "zero": (
        "name: m\nmodel: {framework: onnx, file: m.onnx}\ninputs:\n"
        "  - {name: x, dtype: float32, shape: [0]}\n",
        ["spec.yaml:4: inputs[0].shape[0]", "'x'", "found 0; expected a positive integer"],
    ),
    "negative": (
        "name: m\nmodel: {framework: onnx, file: m.onnx}\ninputs:\n"
        "  - {name: x, dtype: float32, shape: [2, -1]}\n",
        ["inputs[0].shape[1]", "found -1; expected a positive integer, a symbol or null"],
    ),
    "bool": (
        "name: m\nmodel: {framework: onnx, file: m.onnx}\ninputs:\n"
        "  - {name: x, dtype: float32, shape: [true]}\n",
        ["inputs[0].shape[0]", "found True; expected a positive integer"],
    ),
    "dtype": (
        "name: m\nmodel: {framework: onnx, file: m.onnx}\ninputs:\n"
        "  - {name: x, dtype: flaot32, shape: [2]}\n",
        ["inputs[0].dtype", "unknown dtype 'flaot32'", "did you mean 'float32'?"],
    ),
    "mapping": (
        "name: m\nmodel:\n  framework: tensorflow\n  graph: m.pb\n"
        "  node_name_mapping: {x: 'a:0', out: 'b:0'}\n" + SPEC_TENSORS,
        ["spec.yaml:5: model.node_name_mapping: no entry for 'y'", "found out, x"],
    ),
    "missing file": (
        "name: m\nmodel: {framework: onnx, file: nowhere.onnx}\n",
        ["spec.yaml:2: model.file", "nowhere.onnx: no such file"],
    ),
    "not yaml": ("name: [m\nmodel: {", ["spec.yaml:", "not valid YAML"]),
    "twice": ("name: m\nname: n\n", ["spec.yaml:2: name", "twice"]),
    "empty": ("", ["spec.yaml: found nothing; expected a mapping"]),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_bad_spec(case: str, tmp_path: Path, ingot_cli) -> None:
    text, parts = SPECS[case]
    write(tmp_path / "m.onnx", "")
    write(tmp_path / "m.pb", "")
    (tmp_path / "spec.yaml").write_text(text)
    before = files(tmp_path)
    refused(ingot_cli("package", "spec.yaml"), 2, *parts)
    assert files(tmp_path) == before


ENTRYPOINTS = {
    "nowhere:build": ["model.entrypoint 'nowhere:build': no module 'nowhere'"],
    "ad:build": ["no module 'ad'", "did you mean 'add'?"],
    "add:biuld": ["add has no attribute 'biuld'", "did you mean 'build'?"],
    "add:VERSION": ["found a str; expected something that can be called"],
    "broken:build": ["importing it failed: ZeroDivisionError: division by zero (broken.py:3)"],
    "unready:build": ["its code imports 'no_such_library', which is not installed"],
    "failing:build": ["entry point 'failing:build' raised KeyError: 'x' (failing.py:2)"],
    "lazy:build": ["'lazy:build' imports 'no_such_library', which is not installed (lazy.py:2)"],
    "syntax:build": ["not valid Python", "syntax.py"],
}


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_a_bad_entry_point(entrypoint: str, tmp_path: Path, ingot_cli) -> None:
    spec = python_add(tmp_path)
    with (tmp_path / "add.py").open("a") as file:
        file.write("VERSION = 'one'\n")
    write(tmp_path / "broken.py", "import os\n\n1 / 0\n")
    write(tmp_path / "unready.py", "import no_such_library\n")
    write(tmp_path / "failing.py", "def build():\n    return {}['x']\n")
    write(tmp_path / "lazy.py", "def build():\n    import no_such_library\n")
    write(tmp_path / "syntax.py", "def build(:\n")
    before = files(tmp_path)
    process = ingot_cli("package", spec, "--set", f"model.entrypoint={entrypoint}")
    codes = {"failing:build": 5, "syntax:build": 5, "unready:build": 6, "lazy:build": 6}
    refused(process, codes.get(entrypoint, 2), *ENTRYPOINTS[entrypoint])
    assert files(tmp_path) == before


def test_an_entry_point_that_is_no_entry_point(tmp_path: Path, ingot_cli) -> None:
    process = ingot_cli("package", python_add(tmp_path), "--set", "model.entrypoint=add.build")
    refused(process, 2, "--set" if "--set" in process.stderr else "entrypoint", "module:attribute")


def zip_of(path: Path, entries: list[tuple[str, bytes]], mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return path


def test_a_truncated_zip(tmp_path: Path, package: Path, ingot_cli) -> None:
    data = package.read_bytes()
    (tmp_path / "cut.ingot").write_bytes(data[: len(data) // 2])
    for command in ("infer", "verify", "inspect"):
        refused(ingot_cli(command, "cut.ingot"), 5, "cut.ingot", "truncated")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "0/../../evil", "a//b", "..", "a\\..\\b"])
@pytest.mark.parametrize("command", ["infer", "verify", "inspect"])
def test_a_zip_that_climbs_out(name: str, command: str, tmp_path: Path, ingot_cli) -> None:
    zip_of(tmp_path / "evil.ingot", [("config.json", b"{}"), (name, b"x")])
    refused(ingot_cli(command, "evil.ingot"), 5, "evil.ingot")
    assert files(tmp_path) == {"evil.ingot"}


def test_a_zip_with_a_symlink(tmp_path: Path, ingot_cli) -> None:
    zip_of(tmp_path / "link.ingot", [("config.json", b"/etc/passwd")], mode=0o120777)
    refused(ingot_cli("verify", "link.ingot"), 5, "link.ingot", "config.json", "link")


def test_a_zip_with_two_entries_of_one_name(tmp_path: Path, ingot_cli) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        zip_of(tmp_path / "twice.ingot", [("config.json", b"{}"), ("config.json", b"[]")])
    refused(ingot_cli("verify", "twice.ingot"), 5, "twice.ingot", "config.json")


def test_a_zip_that_unpacks_to_more_than_it_says(tmp_path: Path, ingot_cli) -> None:
    path = tmp_path / "bomb.ingot"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * 1_000_000)
    data = bytearray(path.read_bytes())
    size = (1_000_000).to_bytes(4, "little")
    while (place := data.find(size)) >= 0:
        data[place : place + 4] = (10).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    refused(ingot_cli("verify", "bomb.ingot"), 5, "bomb.ingot", "config.json")


def test_a_zip_bomb_that_says_so(tmp_path: Path, ingot_cli) -> None:
    path = tmp_path / "bomb.ingot"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("0/data/model.pt", "w", force_zip64=True) as member:
            for _ in range(1100):
                member.write(bytes(1 << 20))
        archive.writestr("config.json", b"{}")
    refused(ingot_cli("verify", "bomb.ingot"), 5, "bomb.ingot")


def altered(package: Path, target: Path, name: str, data: bytes) -> Path:
    """Copy a package with one file replaced and the manifest left as it was."""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info, data if info.filename == name else old.read(info))
    return target


@pytest.mark.parametrize("name", ["0/data/model.onnx", "config.json", "test_data.npz"])
def test_a_hash_that_does_not_match(name: str, tmp_path: Path, package: Path, ingot_cli) -> None:
    with zipfile.ZipFile(package) as archive:
        data = archive.read(name)
    changed = data.replace(b"add", b"sub") if name == "config.json" else data + b"\0"
    altered(package, tmp_path / "bad.ingot", name, changed)
    process = ingot_cli("verify", "bad.ingot")
    assert process.returncode == 4, process.stdout
    assert "FAIL  hashes" in process.stdout
    assert name in process.stdout
    assert "NOT verified" in process.stdout
    if name != "test_data.npz":  # infer does not read golden data
        process = ingot_cli("infer", "bad.ingot", "-i", "x=[1]", "-i", "y=[2]")
        refused(process, 5, "bad.ingot", name)


def test_a_file_that_the_manifest_does_not_list(tmp_path: Path, package: Path, ingot_cli) -> None:
    shutil.copy(package, tmp_path / "more.ingot")
    with zipfile.ZipFile(tmp_path / "more.ingot", "a") as archive:
        archive.writestr("0/data/extra", b"x")
    process = ingot_cli("verify", "more.ingot", "--json")
    assert process.returncode == 4
    assert "0/data/extra" in process.stdout
    refused(ingot_cli("infer", "more.ingot", "-i", "x=[1]", "-i", "y=[2]"), 5, "0/data/extra")


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pt_that_holds_a_pickle_of_code(tmp_path: Path, ingot_cli) -> None:
    import torch

    torch.save(Evil(), tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    spec = "name: m\nmodel: {framework: torchscript, file: %s}\n" + SPEC_TENSORS
    for name in ("zip.pt", "plain.pt"):
        write(tmp_path / "spec.yaml", spec % name)
        refused(ingot_cli("package", "spec.yaml"), 5, name, "pickle")
        refused(ingot_cli("infer", name), 5, name, "pickle")
    weights = torch_scale(tmp_path)
    for name in ("zip.pt", "plain.pt"):
        process = ingot_cli("package", weights, "--set", f"model.weights={name}")
        refused(process, 5, name, "cannot be read as plain tensors", "pickle that holds code")
    assert not (tmp_path / "pwned").exists()


def test_the_old_torchscript_format(shared: Path, ingot_cli) -> None:
    old = shared / "fixtures" / "neuropod" / "torchscript_addition_model"
    process = ingot_cli("infer", old, "-i", "x=[[1]]", "-i", "y=[[2]]")
    refused(process, 5, "PyTorch 1.0 to 1.3 (model.json)", "which current PyTorch cannot read")
    process = ingot_cli("infer", old / "0" / "data" / "model.pt", "-i", "x=[1]")
    refused(process, 5, "model.pt", "PyTorch 1.0 to 1.3")


def test_code_without_trust(code_package: Path, ingot_cli) -> None:
    process = ingot_cli("infer", code_package, "-i", "x=[1]", "-i", "y=[2]")
    refused(process, 5, "runs its author's code: it is Python code", "--trust-code")
    process = ingot_cli("verify", code_package)
    assert process.returncode == 5
    assert "SKIP  golden" in process.stdout
    with pytest.raises(ingot.UntrustedCodeError):
        ingot.load(code_package)


def test_a_framework_that_the_package_excludes(tmp_path: Path, ingot_cli) -> None:
    import onnxruntime

    spec = write(
        tmp_path / "add.yaml",
        "name: add\nmodel: {framework: onnx, file: add.onnx, platform_version_semver: '>=99'}\n",
    )
    onnx_add(tmp_path / "add.onnx")
    found = f"it needs onnx >=99 (platform_version_semver); found {onnxruntime.__version__}"
    refused(ingot_cli("package", spec), 5, "add.ingot", found)
    refused(
        ingot_cli("package", spec, "--set", "model.platform_version_semver=newest"),
        2,
        "expected an npm-style version range",
    )
    assert not (tmp_path / "add.ingot").exists()


@pytest.fixture
def golden_spec(tmp_path: Path) -> Path:
    onnx_add(tmp_path / "add.onnx")
    np.savez(tmp_path / "in.npz", x=np.ones(3, np.float32), y=np.ones(3, np.float32))
    return write(
        tmp_path / "add.yaml",
        "name: add\nmodel: {framework: onnx, file: add.onnx}\n"
        "test: {inputs: in.npz, expected: out.npz}\n",
    )


GOLDEN = {
    "nan": (np.array([2, np.nan, 2], np.float32), 5, "golden output 'out' holds 1 NaN, first at"),
    "shape": (np.array([2], np.float32), 4, "found shape (3); expected (1)"),
    "scalar": (np.array(2, np.float32), 4, "found shape (3); expected scalar"),
    "value": (
        np.array([2, 2, 3], np.float32),
        4,
        "output 'out': 1 of 3 values differ; largest absolute difference 1 at [2] (found 2.0,"
        " expected 3.0), largest relative difference 0.3333",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_data_that_does_not_match(
    case: str, tmp_path: Path, golden_spec: Path, ingot_cli
) -> None:
    array, code, part = GOLDEN[case]
    np.savez(tmp_path / "out.npz", out=array)
    before = files(tmp_path)
    refused(ingot_cli("package", golden_spec), code, part)
    assert files(tmp_path) == before


def test_golden_data_is_compared_by_value_and_not_by_dtype(
    tmp_path: Path, golden_spec: Path, ingot_cli
) -> None:
    np.savez(tmp_path / "out.npz", out=np.full(3, 2, np.int64))
    process = ingot_cli("package", golden_spec)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("arrays", "code", "part"),
    [
        ({"out": np.ones(3, np.float32), "more": np.ones(1)}, 5, "unknown output 'more'"),
        ({"out": np.array([object()])}, 5, "out.npz"),
    ],
)
def test_other_bad_golden_data(
    arrays: dict[str, np.ndarray], code: int, part: str, tmp_path: Path, golden_spec, ingot_cli
) -> None:
    np.savez(tmp_path / "out.npz", **arrays)
    refused(ingot_cli("package", golden_spec), code, part)


def test_a_model_that_returns_nan(tmp_path: Path, ingot_cli) -> None:
    onnx_add(tmp_path / "nan.onnx", scale=float("nan"))
    np.savez(tmp_path / "in.npz", x=np.ones(3, np.float32), y=np.ones(3, np.float32))
    spec = write(
        tmp_path / "nan.yaml",
        "name: nan\nmodel: {framework: onnx, file: nan.onnx}\ntest: {inputs: in.npz}\n",
    )
    refused(ingot_cli("package", spec), 5, "golden output 'out' holds 3 NaN")


def test_a_full_disk(tmp_path: Path, ingot_cli) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        (tmp_path / "table.bin").write_bytes(os.urandom(1 << 20))
        spec = python_add(tmp_path)
        data = "model.data_paths=[{path: table.bin, packaged_name: table.bin}]"
        for extra in ([], ["--dir"]):
            target = small / "add.ingot"
            process = ingot_cli("package", spec, "-o", target, "--set", data, *extra)
            refused(process, 1, "small/add.ingot", "No space left on device")
            assert files(small) == set()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_existing_outputs_are_refused(tmp_path: Path, package: Path, ingot_cli) -> None:
    onnx_add(tmp_path / "add.onnx")
    spec = write(tmp_path / "add.yaml", "name: add\nmodel: {framework: onnx, file: add.onnx}\n")
    (tmp_path / "add.ingot").write_text("mine")
    refused(ingot_cli("package", spec), 2, "add.ingot", "--force")
    assert (tmp_path / "add.ingot").read_text() == "mine"
    assert ingot_cli("package", spec, "--force").returncode == 0
    infer = ("infer", package, "-i", "x=[1]", "-i", "y=[2]", "-o", "out.json")
    assert ingot_cli(*infer).returncode == 0
    refused(ingot_cli(*infer), 2, "out.json", "--force")


def test_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model_path"):
        ingot.create_onnx_package(tmp_path / "a", "a", modle_path="x")  # type: ignore[call-arg]
    with pytest.raises(
        TypeError, match=r"create_onnx_package.*test_input_dta.*did you mean 'test_input_data'"
    ):
        ingot.create_onnx_package(
            tmp_path / "a",
            "a",
            model_path=onnx_add(tmp_path / "add.onnx"),
            test_input_dta={},  # type: ignore[call-arg]
        )


def test_a_file_that_is_no_model(tmp_path: Path, ingot_cli) -> None:
    write(tmp_path / "notes.txt", "hello")
    write(tmp_path / "bad.onnx", "hello")
    (tmp_path / "folder").mkdir()
    refused(ingot_cli("infer", "notes.txt"), 5, "notes.txt: not a package, nor a model file")
    refused(ingot_cli("infer", "bad.onnx"), 5, "bad.onnx: ONNX Runtime", "cannot open it")
    refused(ingot_cli("inspect", "folder"), 5, "folder: not a package (no config.json)")
    refused(ingot_cli("verify", "nowhere"), 5, "nowhere: no such file or folder")
    refused(
        ingot_cli("verify", "bad.onnx"),
        5,
        "bad.onnx: found a bare onnx model; expected a package",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["-i", "x"], 2, "-i x: expected NAME=VALUE"),
        (["-i", "x=[1, 2"], 5, "-i x: found '[1, 2'; expected a .npy file, @file.json, or float32"),
        (["-i", "x=[[1], [1, 2]]"], 5, "-i x: the nested lists are not of equal lengths"),
        (["-i", "x=@no.json"], 5, "-i x: "),
        (["-i", "x=no.npy"], 5, "-i x: no.npy: "),
        (["-i", "x=[true]"], 5, "-i x: found booleans; expected float32 values"),
        (["-i", "x=[1]", "-i", "x=[1]"], 2, "-i x: given twice"),
        (["--inputs", "no.npz"], 5, "no.npz: no such file"),
        (["--batch-size", "2"], 2, "--batch-size needs --inputs FILE.npz"),
        (["--warmup", "2"], 2, "--warmup without --repeat"),
        (["-o", "out.txt"], 2, "expected a name that ends in .npz or .json"),
        (["--device", "tpu"], 2, "device: found 'tpu'; expected cpu, gpu or gpu:N"),
    ],
)
def test_bad_options_of_infer(
    arguments: list[str], code: int, part: str, package: Path, ingot_cli
) -> None:
    refused(ingot_cli("infer", package, *arguments), code, part)


def test_errors_are_json_when_json_is_asked_for(tmp_path: Path, ingot_cli) -> None:
    import json

    write(tmp_path / "spec.yaml", "name: m\nmodle: {}\n")
    process = ingot_cli("package", "spec.yaml", "--json")
    error = json.loads(process.stdout)["error"]
    assert process.returncode == error["exit_code"] == 2
    assert (error["line"], error["key"], error["type"]) == (2, "modle", "SpecError")
    assert error["hint"] == "did you mean 'model'?"


def test_vv_shows_the_traceback(tmp_path: Path, ingot_cli) -> None:
    process = ingot_cli("verify", "nowhere", "-vv")
    assert process.returncode == 5
    assert "Traceback" in process.stderr


def test_a_missing_framework_names_its_extra(tmp_path: Path, package: Path, empty_home) -> None:
    """In a process that cannot import ONNX Runtime, what needs it exits with 6."""
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from ingot.cli import main; main(sys.argv[1:])"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, "infer", str(package), "-i", "x=[1]", "-i", "y=[1]"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    refused(process, 6, "this needs onnxruntime, which is not installed", "ingot[onnx]")


def test_torchscript_with_the_wrong_number_of_inputs(tmp_path: Path, ingot_cli) -> None:
    torchscript_add(tmp_path / "add.pt")
    spec = write(
        tmp_path / "add.yaml",
        "name: add\nmodel: {framework: torchscript, file: add.pt}\ninputs:\n"
        "  - {name: a, dtype: float32, shape: [n]}\n"
        "  - {name: b, dtype: float32, shape: [n]}\n"
        "  - {name: c, dtype: float32, shape: [n]}\n"
        "outputs: [{name: out, dtype: float32, shape: [n]}]\n",
    )
    refused(ingot_cli("package", spec), 5, "forward takes 2 arguments (x, y)", "3 inputs (a, b, c)")
