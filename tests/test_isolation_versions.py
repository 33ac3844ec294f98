"""Packages that share module names, and lock different versions of a library, in one program."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from isolation_models import nothing_left
from models import write
from test_lock_environment import make_wheel

import ingot

TENSORS = {
    "input_spec": [{"name": "x", "dtype": "string", "shape": ["n"]}],
    "output_spec": [{"name": "out", "dtype": "string", "shape": ["n"]}],
}


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty INGOT_HOME, and a pip that knows our wheels only."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        make_wheel(folder, "demo_lib", version, says=f"release {version}")
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("INGOT_HOME", str(tmp_path / "home"))


def package(folder: Path, name: str, version: str) -> Path:
    """Package a model whose modules are called as those of every other one."""
    code = folder / name
    write(code / "helpers.py", f"NAME = {name!r}\n")
    write(
        code / "main.py",
        """
        import helpers
        import numpy as np


        def load(data_root):
            import demo_lib

            def model(x):
                said = f"{helpers.NAME}, {demo_lib.says}, "
                return {"out": np.array([said + text for text in x], np.str_)}

            return model
        """,
    )
    lock = write(folder / f"{name}.lock", f"demo-lib=={version}\n")
    installed = f"{folder}/wheels/demo_lib-{version}-py3-none-any.whl"  # can be imported as it is
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(installed)
        patch.setenv("PYTHONPATH", installed)
        path = ingot.create_python_package(
            folder / f"{name}.ingot",
            name,
            **TENSORS,
            code_path_spec=[{"python_root": code, "dirs_to_package": [""]}],
            entrypoint_package="main",
            entrypoint="load",
            requirements_lock=lock,
        )
    sys.modules.pop("demo_lib", None)
    return path


def test_two_versions_of_a_library_in_one_program(tmp_path: Path) -> None:
    old, new = (package(tmp_path, name, v) for name, v in (("old", "1.0"), ("new", "2.0")))
    options = {"isolate": True, "install_lock": True, "trust_code": True}
    x = {"x": np.array(["a", "é"])}
    with (
        nothing_left(),
        ingot.load(old, **options) as first,
        ingot.load(new, **options, workers=2) as second,
    ):
        for _ in range(3):
            assert first.infer(x)["out"].tolist() == [f"old, release 1.0, {t}" for t in "aé"]
            assert second.infer(x)["out"].tolist() == [f"new, release 2.0, {t}" for t in "aé"]
    assert len(list((tmp_path / "home/environments").iterdir())) == 2
    with pytest.raises(ingot.MissingDependencyError, match="demo-lib"):
        ingot.load(old, isolate=True, trust_code=True)  # the lock holds in a worker, too
    with pytest.raises(ingot.UntrustedCodeError):
        ingot.load(old, isolate=True, install_lock=True)


def test_the_command_installs_a_lock(tmp_path: Path, ingot_cli) -> None:
    path = package(tmp_path, "old", "1.0")
    arguments = ("infer", path, "--trust-code", "-i", 'x=["a"]', "-o", "-")
    process = ingot_cli(*arguments, "--isolate", "--install-lock")
    assert process.returncode == 0, process.stderr
    assert process.stdout == '{"out": ["old, release 1.0, a"]}\n'
    assert ingot_cli(*arguments, "--isolate").returncode == 6
    assert ingot_cli(*arguments, "--install-lock").returncode == 2
