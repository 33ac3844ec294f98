"""Fixtures for every test; the environment of the process is set before a framework is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).resolve().parent.parent

THREADS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
# What would redirect files out of the home folder, or change output, when the user has set it.
USER_SETTINGS = ("INGOT_", "XDG_", "KERAS_", "ORT_", "PYTHON", "NO_COLOR", "FORCE_COLOR", "COLUMNS")

SHARED = Path(os.environ.get("INGOT_SHARED") or ROOT.parent / "shared")


def _isolate() -> None:
    for name in list(os.environ):
        if name.startswith(USER_SETTINGS) and name != "INGOT_SHARED":  # xdist's workers need it
            del os.environ[name]
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    home = tempfile.mkdtemp(prefix="ingot-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["HOME"] = home


_isolate()


class IngotCli(Protocol):
    """The type of the fixture :func:`ingot_cli`."""

    def __call__(
        self,
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        text: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess: ...


@pytest.fixture
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, which is the home folder of what ``ingot_cli`` runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def ingot_cli(tmp_path: Path, empty_home: Path) -> IngotCli:
    """Run ``ingot ARGS`` in a process of its own, with an empty home, in ``cwd`` (``tmp_path``).

    ``env`` is added to the environment. Output is text, but for ``text=False`` or bytes as input.
    """

    def run(
        *args: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        text: bool = True,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "ingot.cli", *map(str, args)],
            cwd=cwd or tmp_path,
            env={**os.environ, "HOME": str(empty_home), **(env or {})},
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=text and not isinstance(input, bytes),
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that is not in the repository; the test is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} is not there (INGOT_SHARED names another folder)")
    return SHARED
