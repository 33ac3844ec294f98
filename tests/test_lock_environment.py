"""Locked packages are installed once, whole or not at all: with real pip and wheels made here."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingot.errors import MissingDependencyError, PackageError, UsageError
from ingot.runtime.isolation.lock_environment import (
    MARKER,
    describe_interpreter,
    environments_folder,
    find_interpreter,
    install_lock,
)

ROOT = Path(__file__).resolve().parent.parent
LOCK = "demo-lib==1.0\nother==2.0\n"


def make_wheel(folder: Path, name: str, version: str, tag: str = "py3", says: str = "") -> None:
    """Write a wheel of one module, which knows its ``version`` and what it ``says``."""
    stem = f"{name}-{version}"
    files = {
        f"{name}.py": f"version = {version!r}\nsays = {says!r}\n",
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Requires-Dist: not-to-be-had\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\n"
        f"Root-Is-Purelib: true\nTag: {tag}-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text)}\n"
    files[f"{stem}.dist-info/RECORD"] = f"{record}{stem}.dist-info/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{stem}-{tag}-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def make_failing_sdist(folder: Path, name: str, version: str) -> None:
    """Write a source distribution that needs nothing to be built, but cannot be."""
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\n'
        'backend-path = ["."]\n',
        "backend.py": "def build_wheel(*given):\n    raise RuntimeError('no Fortran compiler')\n",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(folder, "demo_lib", "1.0")
    make_wheel(folder, "demo_lib", "2.0")
    make_wheel(folder, "other", "2.0")
    make_failing_sdist(folder, "broken", "1.0")
    for version in range(9, 20):
        make_wheel(folder, "tagged", "1.0", f"cp3{version}", f"3.{version}")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty INGOT_HOME, and a pip that knows our wheels only."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("INGOT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Gate:
    """A server of one page of links, which answers nobody before it is opened."""

    def __init__(self, wheels: Path) -> None:
        gate = self
        self.asked, self.opened, self.left = (threading.Event() for _ in range(3))

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/":
                    gate.asked.set()
                    while not gate.opened.wait(0.02):
                        if _is_closed(self.connection):
                            gate.left.set()
                            return
                super().do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        def make(*arguments: object) -> Handler:
            return Handler(*arguments, directory=str(wheels))  # type: ignore[arg-type]

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        connection.setblocking(True)


@pytest.fixture
def gate(wheels: Path) -> Iterator[Gate]:
    made = Gate(wheels)
    yield made
    made.opened.set()
    made.server.shutdown()
    made.server.server_close()


PROGRAM = """
import sys
from ingot.runtime.isolation.lock_environment import install_lock
say = lambda line: print(line, flush=True)
print(install_lock(sys.argv[1], sys.executable, "p", progress=say))
"""


def start_builder(gate: Gate, lock: str = LOCK) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, lock],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PIP_FIND_LINKS": gate.url},
    )


def found_by(python: Path | str, folder: Path, module: str, attribute: str) -> str:
    """Return an attribute of a module, imported by an interpreter with the folder first."""
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r});"
        f"import {module}; print({module}.{attribute})"
    )
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_environment_holds_the_locked_packages_and_says_so(home: Path) -> None:
    lines: list[str] = []
    folder = install_lock(LOCK, sys.executable, "p", progress=lines.append)
    assert folder.parent == home / "environments" == environments_folder()
    assert re.fullmatch(r"[0-9a-f]{64}", folder.name)
    assert listed(folder.parent) == [folder.name]
    assert found_by(sys.executable, folder, "demo_lib", "version") == "1.0"
    assert found_by(sys.executable, folder, "other", "version") == "2.0"
    assert lines[0].startswith("p: installing 2 locked packages for cpython 3.")
    assert lines[1:] == ["Installing collected packages: other, demo-lib"]
    about = json.loads((folder / MARKER).read_text())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert about.pop("size_bytes") == size - (folder / MARKER).stat().st_size
    assert about.pop("created_with").startswith("ingot ")
    assert about.pop("interpreter") == describe_interpreter(Path(sys.executable))
    assert about == {"lock": ["demo-lib==1.0", "other==2.0"]}


def test_packages_with_equivalent_locks_share_one() -> None:
    first = install_lock(LOCK, sys.executable, "p")
    stamp = (first / MARKER).stat()
    lines: list[str] = []
    same = "# required: demo_lib\nOther == 2.0  # why\n\nDemo.Lib==1.0\n"
    assert install_lock(same, Path(sys.executable), "q", progress=lines.append) == first
    assert lines == []
    assert (first / MARKER).stat() == stamp
    root = first.parent.parent / "elsewhere"
    assert install_lock(LOCK, sys.executable, "p", root=root) == root / first.name


def test_other_versions_are_kept_apart() -> None:
    folders = [
        install_lock(f"demo-lib=={version}", sys.executable, "p") for version in ("1.0", "2.0")
    ]
    found = [found_by(sys.executable, folder, "demo_lib", "version") for folder in folders]
    assert found == ["1.0", "2.0"]


def test_a_lock_of_nothing_gives_an_empty_folder() -> None:
    folder = install_lock("# required: nothing\n", sys.executable, "p")
    assert listed(folder) == [MARKER]


def test_a_damaged_environment_is_built_anew() -> None:
    folder = install_lock(LOCK, sys.executable, "p")
    (folder / MARKER).unlink()
    (folder / "other.py").unlink()
    assert install_lock(LOCK, sys.executable, "p") == folder
    assert found_by(sys.executable, folder, "other", "version") == "2.0"
    assert listed(folder.parent) == [folder.name]


def test_builders_at_once_build_once(gate: Gate, home: Path) -> None:
    first = start_builder(gate)
    assert gate.asked.wait(60)
    others = [start_builder(gate) for _ in range(2)]
    for process in others:
        assert process.stdout is not None
        assert "waiting for another process" in process.stdout.readline()
    made: list[Path] = []
    said: list[str] = []

    def install() -> None:
        made.append(install_lock(LOCK, sys.executable, "p", progress=said.append))

    thread = threading.Thread(target=install)
    thread.start()
    gate.opened.set()
    outputs = [process.communicate(timeout=60)[0] for process in (first, *others)]
    thread.join(60)
    assert {Path(output.splitlines()[-1]) for output in outputs} == set(made)
    assert listed(home / "environments") == [made[0].name]
    assert sum("p: installing" in output for output in outputs) == 1
    assert [output.count("\n") for output in outputs[1:]] == [1, 1]
    assert not any("installing" in line for line in said)


@pytest.mark.parametrize("next_lock", [LOCK, "demo-lib==2.0"], ids=["same", "other"])
def test_what_a_killed_builder_left_is_removed_by_the_next(
    gate: Gate, home: Path, next_lock: str
) -> None:
    process = start_builder(gate)
    assert gate.asked.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert gate.left.wait(60), "its pip lives on"
    remains = [name for name in listed(home / "environments") if name.endswith(".part")]
    assert len(remains) == 1
    folder = install_lock(next_lock, sys.executable, "p")
    assert listed(home / "environments") == [folder.name]


def test_an_interrupted_builder_leaves_nothing(gate: Gate, home: Path) -> None:
    process = start_builder(gate)
    assert gate.asked.wait(60)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert gate.left.wait(60)

    def interrupt(line: str) -> None:
        if line.startswith("Installing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install_lock(LOCK, sys.executable, "p", progress=interrupt)
    assert listed(home / "environments") == []


def test_a_version_that_is_not_to_be_had_is_named(home: Path) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        install_lock("other==2.0\ndemo-lib==9\n", sys.executable, "p.ingot")
    assert caught.value.message == (
        "p.ingot: its locked requirement demo-lib==9 cannot be installed: Could not find a version"
        " that satisfies the requirement demo-lib==9 (from versions: 1.0, 2.0)"
    )
    assert "PIP_FIND_LINKS" in (caught.value.hint or "")
    assert listed(home / "environments") == []


def test_a_package_that_cannot_be_built_is_named_with_the_reason(home: Path) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        install_lock("other==2.0\nbroken==1.0\n", sys.executable, "p.ingot")
    assert caught.value.message == (
        "p.ingot: its locked requirement broken==1.0 cannot be installed:"
        " RuntimeError: no Fortran compiler"
    )
    assert "no wheel fits this interpreter" in (caught.value.hint or "")
    assert listed(home / "environments") == []


def test_an_index_that_does_not_answer_is_hinted_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but it does not listen
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        with pytest.raises(MissingDependencyError, match=r"absent==1\.0 cannot be") as caught:
            install_lock("absent==1.0", sys.executable, "p")
    assert "index did not answer" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("USER", "1"), ("TARGET", "away"), ("PREFIX", "away"), ("REQUIRE_VIRTUALENV", "1")],
)
def test_settings_of_pip_do_not_lead_it_elsewhere(
    setting: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(f"PIP_{setting}", str(tmp_path / value) if value == "away" else value)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "pip.py").write_text("raise SystemExit('this is no pip')\n")
    folder = install_lock("other==2.0", sys.executable, "p")
    assert "other.py" in listed(folder)
    assert not (tmp_path / "away").exists()


def test_a_pip_that_installs_nothing_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_DRY_RUN", "1")
    with pytest.raises(MissingDependencyError, match=r"other==2\.0 is not there after pip has run"):
        install_lock("other==2.0", sys.executable, "p")
    assert listed(home / "environments") == []


@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        ("other>=1", "expected name==version"),
        ("other==1.*", "expected an exact version"),
        ("other==${HOME}", "expected an exact version"),
        ("demo_lib==1.0\nDemo-Lib==2.0", "locked twice, as 1.0 and as 2.0"),
    ],
)
def test_a_lock_that_is_none_is_refused(lock: str, reason: str, home: Path) -> None:
    with pytest.raises(PackageError, match=re.escape(reason)) as caught:
        install_lock(lock, sys.executable, "p.ingot")
    assert caught.value.message.startswith("p.ingot: 0/requirements.lock:")
    assert not home.exists()


def test_an_interpreter_that_is_none_is_named(tmp_path: Path, home: Path) -> None:
    with pytest.raises(UsageError, match=r"absent/python: no such interpreter"):
        install_lock(LOCK, tmp_path / "absent/python", "p")
    with pytest.raises(UsageError, match="no-such-python: no such interpreter"):
        install_lock(LOCK, "no-such-python", "p")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'not me' >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(UsageError, match="expected an interpreter of Python 3; it said 'not me'"):
        install_lock(LOCK, script, "p")
    script.write_bytes(b"\x7fELF, but no program")
    with pytest.raises(UsageError, match="cannot be run"):
        install_lock(LOCK, script, "p")
    assert not home.exists()


def test_an_interpreter_may_be_a_name_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "our-python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_interpreter("our-python") == tmp_path / "our-python"


def other_interpreter() -> Path:
    """Return an interpreter of another version, with a pip; skip the test when there is none."""
    user = Path(pwd.getpwuid(os.getuid()).pw_dir)  # HOME is an empty folder here
    candidates = sorted((user / ".pyenv/versions").glob("3.*/bin/python3"), reverse=True)
    named = [shutil.which(f"python3.{minor}") for minor in range(20, 8, -1)]
    for candidate in [*candidates, *(Path(path) for path in named if path)]:
        if not os.access(candidate, os.X_OK):
            continue
        asked = subprocess.run([candidate, "-I", "-m", "pip", "-V"], capture_output=True)
        if asked.returncode:
            continue
        version = describe_interpreter(candidate)["version"]
        ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if version != ours and int(version.split(".")[1]) >= 9:
            return candidate
    pytest.skip("there is no other Python with pip here (looked for pyenv's and on PATH)")


def test_another_interpreter_gets_an_environment_of_its_own() -> None:
    python = other_interpreter()
    ours = install_lock("tagged==1.0", sys.executable, "p")
    theirs = install_lock("tagged==1.0", python, "p")
    assert ours != theirs
    assert found_by(python, theirs, "tagged", "says") == describe_interpreter(python)["version"]
    ours_says = found_by(sys.executable, ours, "tagged", "says")
    assert ours_says == f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def without_pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin/python"


def test_an_interpreter_without_pip_is_served_by_the_callers(without_pip: Path) -> None:
    folder = install_lock(LOCK, without_pip, "p")
    assert found_by(without_pip, folder, "demo_lib", "version") == "1.0"
    # Nor does it matter which of two alike interpreters has asked first.
    assert install_lock(LOCK, sys.executable, "p") == folder


def test_without_any_pip_the_remedy_is_told(
    without_pip: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ingot").symlink_to(ROOT)
    paths = [str(tmp_path), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    program = (
        "import sys, ingot; from ingot.runtime.isolation.lock_environment import install_lock\n"
        "try: install_lock('other==2.0', sys.executable, 'p')\n"
        "except ingot.MissingDependencyError as error: print(error.message); print(error.hint)"
    )
    done = subprocess.run(
        [without_pip, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    message, hint = done.stdout.splitlines()
    assert message.startswith("p: its locked requirements cannot be installed: ")
    assert "has no pip" in message
    assert hint.startswith(f"{without_pip} -m ensurepip")
    assert listed(home / "environments") == []


def test_a_home_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INGOT_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"file/environments: Not a directory") as caught:
        install_lock(LOCK, sys.executable, "p")
    assert "INGOT_HOME" in (caught.value.hint or "")


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="shut: Permission denied"):
        install_lock(LOCK, sys.executable, "p", root=tmp_path / "shut")
