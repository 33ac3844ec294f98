"""The code blocks of Neuropod's tutorial and overview, with the changes that a user has to make."""

from __future__ import annotations

import contextlib
import io
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.compat import neuropod

MENDS = {
    "neuropod.packagers": "ingot.compat.neuropod",
    "tf.placeholder": "tf.compat.v1.placeholder",
    "tf.keras.backend.get_session()": "None",
}


def blocks(text: str) -> list[str]:
    return re.findall(r"^```py\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def execute(block: str, names: dict[str, Any], file: Path, mends: Mapping[str, str]) -> str:
    """Run a code block and return what it printed. TorchScript wants its source in a file."""
    for old, new in {**MENDS, **mends}.items():
        block = block.replace(old, new)
    block = re.sub(r"\bprint (.+)$", r"print(\1)", block, flags=re.MULTILINE)
    file.write_text(block, encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, str(file), "exec"), names)
    return printed.getvalue()


@pytest.mark.slow
def test_the_code_blocks_of_the_documents_themselves(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tensorflow = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    (tutorial,) = (shared / "seeds").glob("000_*.txt")
    (overview,) = (shared / "seeds").glob("001_*.txt")
    problem = types.SimpleNamespace()
    names: dict[str, Any] = {
        "__name__": "tutorial",
        "np": np,
        "tf": tensorflow,
        "Input": keras.Input,
        "Add": keras.layers.Add,
        "Model": keras.Model,
        "addition_problem_definition": problem,
        "load_neuropod": neuropod.load_neuropod,
    }
    root = tmp_path / "code"
    root.mkdir()
    mends = {
        "/path/to/my/frozen.graph": str(tmp_path / "frozen.pb"),
        "/my/model/code/dir": str(root),
    }
    packages: list[Path] = []
    answers = []
    for number, block in enumerate(blocks(tutorial.read_text(encoding="utf-8"))):
        path = tmp_path / f"package-{number}"
        names["neuropod_path"] = str(path)
        if "def get_model(" in block:  # the tutorial keeps this block in a file of its own
            (root / "main.py").write_text(block, encoding="utf-8")
            continue
        if "ADDITION_MODEL_PATH" in block:
            for package in packages:
                names["ADDITION_MODEL_PATH"] = str(package)
                answers.append(execute(block, names, tmp_path / "infer.py", {}))
            continue
        execute(block, names, tmp_path / f"block_{number}.py", mends)
        if "INPUT_SPEC" in block and not vars(problem):
            vars(problem).update({name: value for name, value in names.items() if name.isupper()})
        if "create_tf_addition_model" in block and "def " in block:
            graph = names["create_tf_addition_model"]()
            (tmp_path / "frozen.pb").write_bytes(graph.SerializeToString())
        if path.exists():
            packages.append(path)
    assert len(packages) == 5
    assert answers == ["[ 6.  8. 10. 12.]\n"] * 5

    names["TF_ADDITION_MODEL_PATH"], names["PYTORCH_ADDITION_MODEL_PATH"] = packages[0], packages[2]
    printed = [
        execute(block, names, tmp_path / f"overview_{number}.py", {})
        for number, block in enumerate(blocks(overview.read_text(encoding="utf-8")))
    ]
    assert printed == ["[ 6.  8. 10. 12.]\n" * 2, ""]
    assert names["OUTPUT_SPEC"][1]["dtype"] == "string"
