"""The user's code: relative and absolute imports, and folders that share module names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from models import write

import ingot
from ingot.frameworks.entrypoints import CodeFolder

FILES = {
    "main.py": """
        import helper
        from helper import value as imported
        from . import helper as relative
        from .sub.deep import DEEP
        import sub.deep
        import json

        def absolute():
            return helper.value()

        def every():
            import late
            return [helper.value(), imported(), relative.value(), DEEP, sub.deep.DEEP, late.LATE]
        """,
    "helper.py": "def value():\n    return {name!r}\n",
    "late.py": "LATE = {name!r}\n",
    "sub/__init__.py": "",
    "sub/deep.py": "from helper import value\nDEEP = value() + '-deep'\n",
}


def code_folder(folder: Path, name: str) -> CodeFolder:
    for file, text in FILES.items():
        write(folder / file, text.replace("{name!r}", repr(name)))
    return CodeFolder(folder, f"{name}.yaml")


def test_absolute_relative_nested_and_late_imports(tmp_path: Path) -> None:
    every = code_folder(tmp_path, "one").callable("main:every")
    assert every() == ["one", "one", "one", "one-deep", "one-deep", "one"]


def test_two_folders_with_the_same_module_names(tmp_path: Path) -> None:
    one = code_folder(tmp_path / "one", "one").callable("main:every")
    two = code_folder(tmp_path / "two", "two").callable("main:every")
    assert [one()[0], two()[0], one()[-1], two()[-1]] == ["one", "two", "one", "two"]
    assert "helper" not in sys.modules


def test_the_folder_comes_before_installed_modules(tmp_path: Path) -> None:
    write(tmp_path / "main.py", "import hypothesis\n\ndef build():\n    return hypothesis.MINE\n")
    write(tmp_path / "hypothesis.py", "MINE = 1\n")
    assert CodeFolder(tmp_path, "m").callable("main:build")() == 1
    import hypothesis

    assert not hasattr(hypothesis, "MINE")


def test_a_folder_without_init_does_not_hide_an_installed_module(tmp_path: Path) -> None:
    write(tmp_path / "main.py", "import json\n\ndef build():\n    return json.dumps(1)\n")
    (tmp_path / "json").mkdir()
    assert CodeFolder(tmp_path, "m").callable("main:build")() == "1"


def test_an_installed_module_can_be_an_entry_point(tmp_path: Path) -> None:
    assert CodeFolder(tmp_path, "m").callable("json:dumps")([1]) == "[1]"
    assert CodeFolder(None, "m").attribute("os.path:sep") == "/"


def test_no_byte_code_is_written_beside_the_users_files(tmp_path: Path) -> None:
    code_folder(tmp_path, "one").callable("main:every")()
    assert not list(tmp_path.rglob("*.pyc"))


def test_classes_can_be_inspected_and_scripted(tmp_path: Path) -> None:
    """dataclasses and torch.jit.script look the module of a class up in sys.modules."""
    import torch

    write(
        tmp_path / "main.py",
        """
        from dataclasses import dataclass

        import torch

        @dataclass
        class Options:
            width: "int" = 2

        class Net(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return double(x)

        def double(x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        def build():
            assert Options().width == 2
            return Net()
        """,
    )
    net = CodeFolder(tmp_path, "m").callable("main:build")()
    assert torch.jit.script(net)(torch.ones(1)).item() == 2


def add_package(folder: Path, offset: int) -> Path:
    """A Python package whose modules are called the same whatever the offset."""
    write(
        folder / "code" / "main.py",
        """
        import numpy as np
        from offsets import OFFSET

        def get_model(data_root):
            return lambda x: {"out": x + np.float32(OFFSET)}
        """,
    )
    write(folder / "code" / "offsets.py", f"OFFSET = {offset}\n")
    tensors = [{"name": "x", "dtype": "float32", "shape": ["n"]}]
    return ingot.create_python_package(
        folder / "add.ingot",
        "add",
        tensors,
        [{"name": "out", "dtype": "float32", "shape": ["n"]}],
        code_path_spec=[{"python_root": folder / "code", "dirs_to_package": [""]}],
        entrypoint_package="main",
        entrypoint="get_model",
    )


def test_two_packages_with_the_same_module_names_in_one_process(tmp_path: Path) -> None:
    paths = [add_package(tmp_path / str(offset), offset) for offset in (1, 2)]
    models = [ingot.load(path, trust_code=True) for path in paths]
    x = np.zeros(1, np.float32)
    assert [model.infer({"x": x})["out"][0] for model in models] == [1, 2]
    for model in models:
        model.close()


def test_a_packages_temporary_folder_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    path = add_package(tmp_path, 1)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with ingot.load(path, trust_code=True):
        assert list(folder.iterdir())
    assert not list(folder.iterdir())
    model = ingot.load(path, trust_code=True)
    del model
    assert not list(folder.iterdir())
