"""``package``, ``inspect`` and ``verify`` as a user sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from isolation_models import alive
from models import INPUTS, SPEC_TENSORS, onnx_add, python_add, torch_scale, write

import ingot


def test_a_package_is_the_same_bytes_whatever_the_time_and_place(tmp_path: Path) -> None:
    packages = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        spec = torch_scale(folder)
        for file in folder.iterdir():
            os.utime(file, (time.time() - 1000 * len(packages),) * 2)
        packages.append(ingot.package(spec, folder / "out.ingot").path.read_bytes())
    assert packages[0] == packages[1]


def test_only_what_the_entry_point_imports_is_packaged(tmp_path: Path) -> None:
    spec = torch_scale(tmp_path)
    write(tmp_path / "unrelated.py", "1 / 0\n")
    path = ingot.package(spec, tmp_path / "out.ingot").path
    with zipfile.ZipFile(path) as archive:
        code = [name for name in archive.namelist() if name.startswith("0/code/")]
        weights = archive.getinfo("0/data/net.safetensors")
    assert code == [
        "0/code/__init__.py",
        "0/code/ingot_entry.py",
        "0/code/layers.py",
        "0/code/net.py",
    ]
    assert weights.compress_type == zipfile.ZIP_STORED


def test_a_whole_root_can_be_packaged_but_not_around_the_package(tmp_path: Path) -> None:
    spec = python_add(tmp_path / "code")
    write(tmp_path / "code" / "data" / "table.txt", "hello")
    write(tmp_path / "code" / "old.pyc", "stale")
    root = "model.code_path_spec=[{python_root: ., dirs_to_package: ['']}]"
    with pytest.raises(ingot.UsageError, match=r"below python_root .*, whose code goes into it"):
        ingot.package(spec, tmp_path / "code" / "out.ingot", overrides=[root])
    path = ingot.package(spec, tmp_path / "out", overrides=[root], as_directory=True).path
    code = sorted(p.relative_to(path / "0/code").as_posix() for p in (path / "0/code").rglob("*"))
    assert "data/table.txt" in code
    assert "data/__init__.py" in code
    assert "old.pyc" not in code


def test_data_files_reach_the_entry_point_before_and_after_packaging(tmp_path: Path) -> None:
    write(tmp_path / "offset.txt", "40")
    write(
        tmp_path / "add.py",
        """
        from pathlib import Path

        import numpy as np

        def build(data_root):
            offset = np.float32((Path(data_root) / "tables" / "offset").read_text())
            return lambda x: x + offset
        """,
    )
    np.savez(tmp_path / "in.npz", x=np.ones(1, np.float32))
    spec = write(
        tmp_path / "add.yaml",
        """
        name: add
        model:
          framework: python
          entrypoint: add:build
          data_paths: [{path: offset.txt, packaged_name: tables/offset}]
        inputs: [{name: x, dtype: float32, shape: [n]}]
        outputs: [{name: out, dtype: float32, shape: [n]}]
        test: {inputs: in.npz}
        """,
    )
    path = ingot.package(spec, tmp_path / "add.ingot").path
    for model in (spec, path):
        with ingot.load(model, trust_code=True) as loaded:
            assert loaded.infer({"x": np.full(1, 2, np.float32)})["out"].tolist() == [42]


def test_a_problem_is_shared(tmp_path: Path) -> None:
    onnx_add(tmp_path / "add.onnx")
    np.savez(tmp_path / "in.npz", **INPUTS)
    write(
        tmp_path / "problem.yaml",
        """
        inputs:
          - {name: x, dtype: float32, shape: [n]}
          - {name: y, dtype: float32, shape: [n]}
        outputs: [{name: out, dtype: float32, shape: [n]}]
        test: {inputs: in.npz}
        """,
    )
    model = "name: add\nproblem: problem.yaml\nmodel: {framework: onnx, file: add.onnx}\n"
    result = ingot.package(write(tmp_path / "add.yaml", model), tmp_path / "add.ingot")
    assert result.golden == "recorded"


@pytest.mark.parametrize("container", ["zip", "directory"])
def test_inspect_and_verify(container: str, tmp_path: Path, ingot_cli) -> None:
    spec = torch_scale(tmp_path)
    flags = ["--dir"] if container == "directory" else []
    made = json.loads(ingot_cli("package", spec, "-o", "out", "--json", *flags).stdout)
    assert made["golden"] == "recorded"
    found = json.loads(ingot_cli("inspect", "out", "--json").stdout)
    assert found["container"] == container
    assert found["framework"] == "torch"
    assert found["platform"] == "python"
    assert found["path"] == made["path"] == str(tmp_path / "out")
    assert found["inputs"] == made["inputs"]
    assert found["golden"]["outputs"] == {"out": {"dtype": "float32", "shape": [5]}}
    assert found["provenance"]["spec"]["file"] == "scale.yaml"
    assert found["provenance"]["created_by"] == f"ingot {ingot.__version__}"
    assert {"config.json", "manifest.json"} <= {entry["name"] for entry in found["files"]}
    for name in ("out", "scale"):
        assert name in ingot_cli("inspect", "out").stdout
    process = ingot_cli("verify", "out", "--trust-code", "--json")
    document = json.loads(process.stdout)
    assert (process.returncode, document["passed"]) == (0, True)
    assert [(check["name"], check["status"]) for check in document["checks"]] == [
        (name, "pass") for name in ("archive", "config", "layout", "hashes", "golden")
    ]
    process = ingot_cli("verify", "out", "--no-golden")
    assert process.returncode == 0
    assert "SKIP  golden" in process.stdout
    assert "out: verified" in process.stdout


def test_verify_notices_a_model_that_computes_something_else(tmp_path: Path, ingot_cli) -> None:
    """Weights and manifest are changed together, so that only the golden data tells."""
    import hashlib

    import torch
    from safetensors.torch import save_file

    path = ingot.package(torch_scale(tmp_path), tmp_path / "out", as_directory=True).path
    weights = path / "0" / "data" / "net.safetensors"
    save_file({"scale.factor": torch.tensor(3.5)}, weights)
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest["files"]["0/data/net.safetensors"] = digest
    (path / "manifest.json").write_text(json.dumps(manifest))
    process = ingot_cli("verify", "out", "--trust-code")
    assert process.returncode == 4
    assert "FAIL  golden" in process.stdout
    assert "largest absolute difference 2 at [4]" in " ".join(process.stdout.split())


def test_verify_survives_a_model_that_kills_its_process(tmp_path: Path, ingot_cli) -> None:
    write(
        tmp_path / "code" / "main.py",
        """
        import os
        import signal

        def get_model(data_root):
            def model(x):
                if x[0] < 0:
                    os.kill(os.getpid(), signal.SIGSEGV)
                return {"out": x}

            return model
        """,
    )
    arguments = {
        "code_path_spec": [{"python_root": tmp_path / "code", "dirs_to_package": [""]}],
        "entrypoint_package": "main",
        "entrypoint": "get_model",
    }
    tensors = [{"name": "x", "dtype": "float32", "shape": ["n"]}]
    outputs = [{"name": "out", "dtype": "float32", "shape": ["n"]}]
    with pytest.raises(ingot.ModelError, match="was ended by SIGSEGV"):
        ingot.create_python_package(
            tmp_path / "bad",
            "bad",
            tensors,
            outputs,
            test_input_data={"x": np.full(1, -1, np.float32)},
            **arguments,
        )
    assert not (tmp_path / "bad").exists()


def test_a_model_that_prints_does_not_disturb(tmp_path: Path, ingot_cli) -> None:
    spec = python_add(tmp_path)
    text = (tmp_path / "add.py").read_text()
    (tmp_path / "add.py").write_text("print('importing')\n" + text)
    np.savez(tmp_path / "in.npz", **INPUTS)
    process = ingot_cli("package", spec, "--json", "--set", "test.inputs=in.npz")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["golden"] == "recorded"


def onnx_package(folder: Path, name: str = "add", **options: object) -> Path:
    model = onnx_add(folder / "add.onnx")
    return ingot.create_onnx_package(
        folder / "p",
        name,
        model_path=model,
        test_input_data=INPUTS,
        **options,  # type: ignore[arg-type]
    )


# --- what people see -------------------------------------------------------------------------


def test_every_hash_problem_is_listed(tmp_path: Path, ingot_cli) -> None:
    package = onnx_package(tmp_path, package_as_zip=False)
    for number in range(13):
        (package / f"extra{number:02}").write_text("")
    (package / "test_data.npz").write_bytes(b"")
    document = json.loads(ingot_cli("verify", "p", "--json").stdout)
    hashes = next(check for check in document["checks"] if check["name"] == "hashes")
    assert hashes["exit_code"] == 4
    assert hashes["message"] == f"{hashes['details'][0]} (and 13 more files)"
    assert len(hashes["details"]) == 14
    assert all(f"'extra{number:02}'" in hashes["details"][number] for number in range(13))
    assert all(check["details"] == [] for check in document["checks"] if check != hashes)
    lines = ingot_cli("verify", "p").stdout.splitlines()
    assert [line.split()[0] for line in lines if "not in manifest" in line] == [
        "FAIL",
        *(f"'extra{number:02}':" for number in range(1, 10)),
    ]
    assert "               and 4 more" in lines


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, ingot_cli) -> None:
    name = "\x1b]0;evil\x07\u202e\x9b31m"
    package = onnx_package(tmp_path, name, package_as_zip=False)
    (package / "\x1b[2J").write_text("")
    processes = [ingot_cli(*arguments) for arguments in (("inspect", "p"), ("verify", "p"))]
    assert r"\x1b]0;evil\x07\u202e\x9b31m, onnx" in processes[0].stdout
    assert r"\x1b[2J" in processes[1].stdout
    processes += [ingot_cli("inspect", "\x1b]0;\x07.onnx", *flags) for flags in ([], ["-vv"])]
    (package / "config.json").write_text(json.dumps({"name": "m", "platform": name}))
    processes += [ingot_cli("inspect", "p"), ingot_cli("inspect", "p", "-vv")]
    for process in processes:
        text = (process.stdout + process.stderr).replace("\n", "")
        assert text.isprintable(), ascii(text)
    process = ingot_cli("inspect", "\x1b]0;\x07.onnx", "--json")
    assert json.loads(process.stdout)["error"]["message"].startswith("\x1b]0;\x07.onnx: no such")


def test_names_that_are_no_text_do_not_break_inspect(tmp_path: Path, ingot_cli) -> None:
    onnx_package(tmp_path, "lone \ud800 half", package_as_zip=False)
    process = ingot_cli("inspect", "p")
    assert process.returncode == 0, process.stderr
    assert r"lone \ud800 half, onnx" in process.stdout
    assert json.loads(ingot_cli("inspect", "p", "--json").stdout)["name"] == "lone \ud800 half"


def test_a_narrow_terminal_shows_whole_file_names(tmp_path: Path, ingot_cli) -> None:
    onnx_package(tmp_path)
    lines = ingot_cli("inspect", "p", env={"COLUMNS": "40"}).stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("file "))
    assert lines[start].split() == ["file", "size"]
    assert [line.split()[0] for line in lines[start + 1 :]] == [
        "0/data/model.onnx",
        "config.json",
        "manifest.json",
        "test_data.npz",
    ]
    assert all(len(line) <= 40 for line in lines)
    lines = ingot_cli("inspect", "p", env={"COLUMNS": "80"}).stdout.splitlines()
    assert ["file", "size", "packed", "sha256"] in [line.split() for line in lines]


# --- signals and pipes -----------------------------------------------------------------------


@pytest.fixture
def sleeping(tmp_path: Path) -> Path:
    """A folder with a spec whose entry point writes its process id, and sleeps.

    It sleeps before packaging, or in the package, as the environment variable NAP says.
    """
    write(
        tmp_path / "work" / "nap.py",
        f"""
        import os
        import time
        from pathlib import Path

        def build():
            here = "package" if Path(__file__).parts[-3:-1] == ("0", "code") else "source"
            if here == os.environ["NAP"]:
                part = Path({str(tmp_path / "part")!r})
                part.write_text(str(os.getpid()))
                part.rename({str(tmp_path / "pid")!r})
                time.sleep(90)
            return lambda x, y: x + y
        """,
    )
    spec = "name: nap\nmodel: {framework: python, entrypoint: nap:build}\n" + SPEC_TENSORS
    write(tmp_path / "work" / "nap.yaml", spec)
    (tmp_path / "work" / "out").mkdir()
    (tmp_path / "tmp").mkdir()
    return tmp_path


def start_package(
    folder: Path, home: Path, *arguments: str, nap: str = "source"
) -> tuple[subprocess.Popen, int]:
    """Start ``ingot package``; return it, and the id of the process that runs the model."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ingot.cli", "package", "nap.yaml", "-o", "out/nap", *arguments],
        cwd=folder / "work",
        env={**os.environ, "HOME": str(home), "TMPDIR": str(folder / "tmp"), "NAP": nap},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Inherited as ignored where the tests run in the background of a shell.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (folder / "pid").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"it never ran the model: {process.communicate()}")
        time.sleep(0.02)
    return process, int((folder / "pid").read_text())


@contextmanager
def hangup_is(handler: signal.Handlers) -> Iterator[None]:
    """Let processes that are started inherit what SIGHUP does."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("nap", ["source", "package"])
def test_a_killed_package_command_leaves_nothing(
    name: str, nap: str, sleeping: Path, empty_home: Path
) -> None:
    with hangup_is(signal.SIG_DFL):  # ignored where the tests run under nohup
        process, child = start_package(sleeping, empty_home, nap=nap)
    assert list((sleeping / "tmp").iterdir())
    assert bool(list((sleeping / "work" / "out").iterdir())) == (nap == "package")
    process.send_signal(getattr(signal, name))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    errors = [line for line in stderr.splitlines() if not line.startswith("packaging ")]
    assert errors == ["error: interrupted; nothing was written"]
    assert list((sleeping / "work" / "out").iterdir()) == []
    assert list((sleeping / "tmp").iterdir()) == []
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline, "the process that ran the model is still there"
        time.sleep(0.02)


def test_an_interruption_as_json(sleeping: Path, empty_home: Path) -> None:
    process, _ = start_package(sleeping, empty_home, "--json")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    stdout, _ = process.communicate(timeout=60)
    assert json.loads(stdout)["error"] == {
        "type": "Interrupted",
        "message": "interrupted; nothing was written",
        "hint": None,
        "exit_code": 130,
    }
    assert list((sleeping / "tmp").iterdir()) == []


def test_nohup_is_heeded(sleeping: Path, empty_home: Path) -> None:
    with hangup_is(signal.SIG_IGN):
        process, _ = start_package(sleeping, empty_home)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize(
    "arguments", [["verify", "p"], ["inspect", "p", "--json"], ["--help"], ["verify", "--help"]]
)
def test_a_reader_that_goes_away(arguments: list[str], tmp_path: Path, empty_home: Path) -> None:
    onnx_package(tmp_path)
    read, written = os.pipe()
    os.close(read)
    try:
        process = subprocess.run(
            [sys.executable, "-m", "ingot.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(empty_home)},
            stdout=written,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(written)
    assert (process.returncode, process.stderr) == (141, b"")


def test_a_reader_of_errors_that_goes_away() -> None:
    command = f"{sys.executable} -m ingot.cli verify nowhere --json 2>&1 | true"
    process = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, check=False
    )
    assert (process.returncode, process.stderr) == (5, b"")


# --- requirements ----------------------------------------------------------------------------


def lock_package(tmp_path: Path, lock: str) -> Path:
    (tmp_path / "requirements.lock").write_text(lock)
    spec = python_add(tmp_path)
    np.savez(tmp_path / "in.npz", **INPUTS)
    overrides = ["model.requirements_lock=requirements.lock", "test.inputs=in.npz"]
    return ingot.package(spec, tmp_path / "locked.ingot", overrides=overrides, force=True).path


def test_a_lock_that_fits_and_one_that_does_not(tmp_path: Path, ingot_cli) -> None:
    arguments = ("--trust-code", "-i", "x=[1]", "-i", "y=[2]")
    path = lock_package(tmp_path, f"# pinned\nnumpy=={np.__version__}\n")
    assert ingot_cli("infer", path, *arguments).returncode == 0
    path = lock_package(tmp_path, "numpy==1.0.0\nno-such-thing==1.2\n")
    process = ingot_cli("infer", path, *arguments)
    assert process.returncode == 6
    assert f"numpy is {np.__version__}, locked is 1.0.0 (and 1 more)" in process.stderr
    assert "--ignore-lock" in process.stderr
    assert ingot_cli("infer", path, *arguments, "--ignore-lock").returncode == 0
    process = ingot_cli("inspect", path, "--requirements")
    assert process.stdout == "numpy==1.0.0\nno-such-thing==1.2\n"
    process = ingot_cli("verify", path, "--trust-code")
    assert process.returncode == 6
    assert "SKIP  golden" in process.stdout


def test_a_lock_that_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ingot.PackageError, match=r"found 'numpy>=1'; expected name==version"):
        lock_package(tmp_path, "numpy>=1\n")


@pytest.mark.slow
def test_requirements_are_compiled_into_a_lock(tmp_path: Path) -> None:
    from ingot.packagers.lock import compile_requirements

    try:
        lock = compile_requirements(["click>=8.1,<9", "# a comment", ""])
    except ingot.ModelError as error:
        pytest.skip(f"no package index: {error}")
    lines = [line for line in lock.splitlines() if not line.startswith("#")]
    assert any(line.startswith("click==8.") for line in lines)
    with pytest.raises(ingot.ModelError, match="requirements: pip cannot resolve them"):
        compile_requirements("click==0.0.0.1")


@pytest.mark.parametrize(
    ("wanted", "installed", "fits"),
    [
        ("*", "1.0", True),
        ("^2.1.0", "2.13.0+cpu", True),
        ("^2.1.0", "3.0.0", False),
        ("~1.2", "1.3.0", False),
        (">=1.2 <2 || 3.x", "3.4.5", True),
        (">=2.13.0", "2.13.0.dev20260101", True),
        (">=1", "not.a.version", False),
    ],
)
def test_version_ranges(wanted: str, installed: str, fits: bool) -> None:
    from ingot.runtime.requirements import check_platform_version

    if fits:
        check_platform_version(wanted, "torch", installed, "m")
    else:
        with pytest.raises((ingot.ModelError, ValueError)):
            check_platform_version(wanted, "torch", installed, "m")
