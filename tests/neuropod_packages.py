"""A Python package for the tests of Neuropod's format, and its parts; nothing here is a test."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SPECS = {
    "input_spec": [
        {"name": "x", "dtype": "float32", "shape": ["n"]},
        {"name": "y", "dtype": "float32", "shape": ["n"]},
    ],
    "output_spec": [{"name": "out", "dtype": "float32", "shape": [None]}],
}
X, Y = np.array([1, 2, 3], np.float32), np.array([10, 20, 30], np.float32)
TEST = {"test_input_data": {"x": X, "y": Y}, "test_expected_out": {"out": X + Y}}

MAIN = """
from .tools.arithmetic import add

def load(data_root):
    with open(data_root + "/offset.txt") as file:
        offset = float(file.read())
    return lambda x, y: {"out": add(x, y) + x.dtype.type(offset)}
"""


def write_code(root: Path) -> None:
    """A root with a package without ``__init__.py``, byte code and data."""
    (root / "tools").mkdir(parents=True)
    (root / "main.py").write_text(MAIN, encoding="utf-8")
    (root / "tools" / "arithmetic.py").write_text("def add(x, y):\n    return x + y\n")
    (root / "tools" / "stale.pyc").write_bytes(b"byte code")
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"byte code")


def python_arguments(root: Path) -> dict[str, Any]:
    return {
        "code_path_spec": [{"python_root": root / "code", "dirs_to_package": [""]}],
        "entrypoint_package": "main",
        "entrypoint": "load",
        "data_paths": [{"path": root / "zero.txt", "packaged_name": "offset.txt"}],
        **SPECS,
    }


def read_config(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"))


def refused(error: type[Exception], match: str, out: Path, make: Callable[[], object]) -> None:
    """Check that ``make`` raises and leaves nothing new beside the packages."""
    before = sorted(out.iterdir())
    with pytest.raises(error, match=match):
        make()
    assert sorted(out.iterdir()) == before


CONSTANT = "def load(data_root):\n    return lambda: {}\n"


def make_work(folder: Path) -> Path:
    """Fill a folder with code and data; packages go to ``out``."""
    write_code(folder / "code")
    (folder / "zero.txt").write_text("0")
    (folder / "pins.lock").write_text("# made by hand\nnumpy==0.0.1\n")
    (folder / "out").mkdir()
    return folder
