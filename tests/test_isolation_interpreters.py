"""Other interpreters, workers that are none, full shared memory, and the command's options."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from isolation_models import inputs, moods, nothing_left, same, start_program
from models import INPUTS, onnx_add, python_add, write

import ingot


def pythons() -> list[Path]:
    """Return the interpreters of this machine, those of pyenv included."""
    user = Path(pwd.getpwuid(os.getuid()).pw_dir)  # HOME is an empty folder here
    named = [shutil.which(f"python{version}") for version in ("2", "2.7", *map(str, range(4)))]
    named += [shutil.which(f"python3.{minor}") for minor in range(6, 20)]
    found = [*user.glob(".pyenv/versions/*/bin/python"), *(Path(path) for path in named if path)]
    return sorted({path for path in found if os.access(path, os.X_OK)})


def find_python(program: str, what: str) -> str:
    """Return an interpreter that runs a program without an error, or skip the test."""
    for path in pythons():
        done = subprocess.run([path, "-c", f"import sys; {program}"], capture_output=True)
        if done.returncode == 0:
            return str(path)
    pytest.skip(f"there is no {what} here (looked for pyenv's and on PATH)")


def script(path: Path, text: str) -> str:
    write(path, text).chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter of an environment that has NumPy and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    only = folder / "only"
    only.mkdir()
    where = Path(np.__file__).parent
    for part in (where, where.parent / "numpy.libs"):
        if part.exists():
            (only / part.name).symlink_to(part)
    (packages / "only.pth").write_text(f"{only}\n")
    return str(folder / "bin/python")


def test_a_worker_needs_numpy_only(bare: str, tmp_path: Path) -> None:
    path = python_add(tmp_path)
    with ingot.load(path) as here:
        expected = here.infer(INPUTS)
    with nothing_left(), ingot.load(path, isolate=True, python=bare, workers=2) as model:
        same(model.infer(INPUTS), expected)


def test_a_framework_that_the_interpreter_lacks(bare: str, tmp_path: Path) -> None:
    path = onnx_add(tmp_path / "add.onnx")
    with nothing_left(), pytest.raises(ingot.MissingDependencyError) as caught:
        ingot.load(path, isolate=True, python=bare)
    assert f"onnxruntime, which is not installed (in the worker, under {bare})" in str(caught.value)
    assert caught.value.hint == f"{bare} -m pip install onnxruntime"


def test_an_interpreter_of_another_version(tmp_path: Path) -> None:
    python = find_python(
        f"assert sys.version_info >= (3, 10) and sys.prefix != {sys.prefix!r}; import numpy",
        "other Python with NumPy",
    )
    path = moods(tmp_path)
    with ingot.load(path, isolate=True, python=python) as model:
        assert (model.infer(inputs())["out"] == inputs()["x"] + 1).all()
        with pytest.raises(ingot.ModelError, match="no luck"):
            model.infer(inputs("raise:no luck"))


def test_an_interpreter_without_numpy(tmp_path: Path) -> None:
    program = (
        "assert sys.version_info >= (3, 10); import importlib.util as found;"
        "assert found.find_spec('numpy') is None"
    )
    python = find_python(program, "Python without NumPy")
    with nothing_left(), pytest.raises(ingot.MissingDependencyError, match="needs NumPy") as caught:
        ingot.load(moods(tmp_path), isolate=True, python=python)
    assert caught.value.hint == f"{python} -m pip install numpy"


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 9)])
def test_an_interpreter_that_is_too_old(version: tuple[int, int], tmp_path: Path) -> None:
    name = ".".join(map(str, version))
    python = find_python(f"assert sys.version_info[:2] == {version}", f"Python {name}")
    with (
        nothing_left(),
        pytest.raises(ingot.UsageError, match=r"expected 3\.10 or later") as caught,
    ):
        ingot.load(moods(tmp_path), isolate=True, python=python)
    assert f"is Python {name}." in caught.value.message


def test_an_interpreter_that_is_none(tmp_path: Path) -> None:
    path = moods(tmp_path)
    text = tmp_path / "text"
    text.write_text("no program")
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF, but no program")
    program.chmod(0o755)
    for python, kind, message in (
        ("no-such-python", ingot.UsageError, "no-such-python: no such interpreter"),
        (tmp_path / "absent", ingot.UsageError, "absent: no such interpreter"),
        (text, ingot.UsageError, "text: is no program"),
        (tmp_path, ingot.UsageError, "is no program"),
        (program, ingot.IsolationError, "program: Exec format error"),
        (script(tmp_path / "ends", "#!/bin/sh\nexit 3\n"), ingot.IsolationError, "exit code 3"),
        (script(tmp_path / "x", "#!/no/such\n"), ingot.IsolationError, "No such file"),
    ):
        with nothing_left(), pytest.raises(kind, match=message):
            ingot.load(path, isolate=True, python=python)


def test_an_interpreter_may_be_started_by_a_script(tmp_path: Path) -> None:
    """Such as sets a library path; it may wait for the interpreter instead of becoming it."""
    for command in ("exec", "env"):
        text = f'#!/bin/sh\n{command} {sys.executable} "$@"\nexit $?\n'
        python = script(tmp_path / command, text)
        with nothing_left(), ingot.load(moods(tmp_path), isolate=True, python=python) as model:
            assert (model.infer(inputs())["out"] == inputs()["x"] + 1).all()


FAKE = """#!{python}
import json, socket, struct, sys, time
sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
def send(kind, payload, sequence=0, count=0):
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    sock.sendall(struct.pack("<4sBBHII", b"INGW", 1, kind, count, len(text), sequence) + text)
TENSOR = {{"dtype": "float32", "shape": ["n"], "optional": False}}
READY = {{
    "name": "", "platform": "python", "framework_version": "1",
    "inputs": [{{"name": "x", **TENSOR}}, {{"name": "y", **TENSOR}}],
    "outputs": [{{"name": "out", **TENSOR}}],
}}
RESULT = {{"tensors": {{}}, "map": [], "drop": [], "kept": []}}
{body}
time.sleep(600)
"""
LOADED = "send(1, {}); sock.recv(1 << 20); send(3, READY); sock.recv(1 << 20); "


@pytest.mark.parametrize(
    "body",
    [
        "sock.sendall(b'hello')",
        "sock.sendall(b'hello, this is no frame of the protocol')",
        "send(5, {})",
        "send(1, [])",
        "send(1, {}); send(3, {})",
        "send(1, {}); send(3, {**READY, 'inputs': 5})",
        "send(1, {}); send(3, {**READY, 'outputs': [{}]})",
        "send(6, {})",
        "send(6, {'type': 'Path', 'message': 5, 'hint': 7})",
        LOADED + "sock.sendall(b'INGW no frame of the protocol')",
        LOADED + "send(5, RESULT)",
        LOADED + "send(5, {}, 1)",
        LOADED + "send(3, READY, 1)",
        LOADED + "send(5, {**RESULT, 'kept': 5}, 1)",
        LOADED + "send(5, {**RESULT, 'map': [[1, 4096]]}, 1)",
        LOADED + "send(5, {**RESULT, 'tensors': {'out': [1, 0, 'float32', [5]]}}, 1)",
        LOADED + "send(5, {**RESULT, 'tensors': {'out': [0, 0, 'float32', [0, 2**62, 9]]}}, 1)",
        LOADED + "send(5, {**RESULT, 'tensors': {'out': 5}}, 1)",
        LOADED + "send(6, {'type': 5, 'hint': {}}, 1)",
        LOADED + "sys.exit(0)",
    ],
)
def test_a_worker_that_breaks_the_protocol(body: str, tmp_path: Path) -> None:
    """Whatever it sends: an IsolationError."""
    path = python_add(tmp_path)
    python = script(tmp_path / "fake", FAKE.format(python=sys.executable, body=body))

    def call() -> None:
        with ingot.load(path, isolate=True, python=python, start_timeout=10, timeout=10) as model:
            model.infer(INPUTS)

    with nothing_left(), pytest.raises(ingot.IsolationError) as caught:
        call()
    assert str(path) in caught.value.message


FULL = """
import json, resource, sys
import numpy as np
import ingot
sys.path.insert(0, sys.argv[2])
from isolation_models import inputs
if sys.argv[3] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
with ingot.load(sys.argv[1], isolate=True) as model:
    for large in (inputs(count=5_000_000), inputs("grow:1000", 5000)):
        for _ in range(2):
            try:
                model.infer(large)
            except ingot.IngotError as error:
                print(error.message, error.hint, sep="|")
            assert model.infer(inputs())["out"].tolist() == [1, 2, 3, 4]
    try:
        model.allocate("x", (5_000_000,))
    except ingot.IngotError as error:
        print(error.message, error.hint, sep="|")
    assert model.infer({**inputs(), "x": model.allocate("x", (4,))})["out"].tolist() == [1] * 4
"""


@pytest.mark.parametrize("way", ["tmpfs", "limit"])
def test_shared_memory_may_be_full(way: str, tmp_path: Path) -> None:
    path = moods(tmp_path)
    environment = dict(os.environ)
    folder = tmp_path / "small"
    folder.mkdir()
    if way == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a small tmpfs cannot be mounted here")
        environment["INGOT_SHARED_MEMORY"] = str(folder)
    try:
        process = start_program(FULL, path, Path(__file__).parent, way, env=environment)
        out, errors = process.communicate(timeout=300)
        assert not list(folder.iterdir())
    finally:
        if way == "tmpfs":
            subprocess.run(["umount", folder], check=True)
    assert process.returncode == 0, errors
    lines = out.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert "cannot make a block of" in line
        assert "smaller batches" in line


def test_the_options_of_the_command(bare: str, tmp_path: Path, ingot_cli) -> None:
    path = python_add(tmp_path)
    arguments = ("infer", path, "-i", "x=[1, 2]", "-i", "y=[10, 20]", "--json")
    expected = json.loads(ingot_cli(*arguments).stdout)
    for options in (
        ("--isolate",),
        ("--isolate", "--workers", "2", "--cpus", min(os.sched_getaffinity(0))),
        ("--isolate", "--timeout", "90", "--start-timeout", "5m", "--memory-limit", "4G"),
        ("--isolate", "--python", bare, "--threads", "1", "--no-check"),
        ("--isolate", "--repeat", "3", "--warmup", "1"),
    ):
        process = ingot_cli(*arguments, *options)
        assert process.returncode == 0, process.stderr
        assert json.loads(process.stdout)["outputs"] == expected["outputs"]
    for options, code in (
        (("--workers", "2"), 2),
        (("--isolate", "--workers", "0"), 2),
        (("--isolate", "--python", "no-such"), 2),
        (("--isolate", "--memory-limit", "1M"), 5),
        (("--isolate", "--install-lock"), 2),
    ):
        process = ingot_cli(*arguments, *options)
        assert process.returncode == code, process.stderr
        assert json.loads(process.stdout)["error"]["message"]


def test_what_the_model_prints_goes_to_standard_error(tmp_path: Path, ingot_cli) -> None:
    path = moods(tmp_path)
    arguments = ("infer", path, "-i", "x=[1]", "-i", "how=print:chatter", "--isolate")
    process = ingot_cli(*arguments, "--json")
    assert json.loads(process.stdout)["outputs"]["out"]["values"] == [2.0]
    assert process.stderr.count("chatter") == 2, "once by print, once by the system call"
    process = ingot_cli(*arguments, "-o", "-")
    assert json.loads(process.stdout)["out"] == [2.0]
    process = ingot_cli("infer", path, "-i", "x=[1]", "-i", "how=segfault", "--isolate", "--json")
    assert process.returncode == 5
    assert "segmentation fault" in json.loads(process.stdout)["error"]["message"]


def test_slices_in_parallel_are_bit_for_bit_the_same(tmp_path: Path, ingot_cli) -> None:
    path = moods(tmp_path)
    spec = path.read_text().replace("shape: [null]", "shape: [n]", 1)
    path = write(tmp_path / "sliced.yaml", spec)
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).random(1001).astype(np.float32))
    arguments = ("infer", path, "--inputs", "in.npz", "-i", "how=", "--output", "out")
    for name, options in (("one", ()), ("two", ("--isolate", "--workers", "2"))):
        process = ingot_cli(*arguments, "-o", f"{name}.npz", "--batch-size", "7", *options)
        assert process.returncode == 0, process.stderr
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert np.load(tmp_path / "two.npz")["out"].shape == (1001,)


def test_a_model_with_data_files_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.txt").write_text("3")
    write(
        tmp_path / "scaled.py",
        """
        def build(data_root):
            factor = float(open(data_root + "/data.txt").read())
            return lambda x, y: {"out": (factor * (x + y)).astype("float32")}
        """,
    )
    text = python_add(tmp_path).read_text().replace("add:build", "scaled:build")
    files = "data_paths: [{path: data.txt, packaged_name: data.txt}]"
    path = write(tmp_path / "scaled.yaml", text.replace("build}", f"build, {files}}}"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with ingot.load(path, isolate=True) as model:
        assert model.infer(INPUTS)["out"][0] == 6
    assert not list(scratch.iterdir())
