"""The applications of examples/ in a shortened form: copied, with few samples."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def copied(name: str, parent: Path, *counts: int) -> Path:
    """Copy an example to a folder, and draw its data.

    Args:
        name: of the example.
        parent: where the copy goes.
        counts: samples of the training and the test split; the example's own by default.
    """
    return copied_with(name, parent, "draw.py", *(["data"] if counts else []), *counts)


def copied_with(name: str, parent: Path, script: str, *arguments: object) -> Path:
    """Copy an example to a folder, and run one of its scripts there."""
    folder = parent / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def script_of(name: str, script: str) -> dict[str, Any]:
    """Return what a script of an example defines."""
    return runpy.run_path(str(EXAMPLES / name / script))
