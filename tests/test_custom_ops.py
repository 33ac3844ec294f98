"""Native operators that a package carries."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from models import onnx_add, write

import ingot

TORCH_OP = """
#include <torch/library.h>
#include <ATen/ATen.h>

at::Tensor triple(const at::Tensor& x) { return 3 * x; }

TORCH_LIBRARY(ingot_test, library) { library.def("triple", triple); }
"""


def compile_torch_op(folder: Path) -> Path:
    import torch

    source = write(folder / "triple.cpp", TORCH_OP)
    root = Path(torch.__file__).parent
    includes = [root / "include", root / "include" / "torch" / "csrc" / "api" / "include"]
    includes.append(Path(sysconfig.get_paths()["include"]))
    library = folder / "libtriple.so"
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(source), "-o", str(library)]
    command += [f"-I{path}" for path in includes] + [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"no compiler that builds PyTorch operators: {built.stderr[-200:]}")
    return library


@pytest.mark.slow
def test_custom_operators_of_two_packages(tmp_path: Path) -> None:
    """In a process of its own: an operator cannot be unregistered."""
    compile_torch_op(tmp_path)
    program = write(
        tmp_path / "program.py",
        """
        import shutil
        import sys
        from pathlib import Path

        import numpy as np
        import torch

        import ingot

        folder = Path(sys.argv[1])
        torch.ops.load_library(str(folder / "libtriple.so"))

        class Net(torch.nn.Module):
            def forward(self, x: torch.Tensor):
                return {"out": torch.ops.ingot_test.triple(x)}

        torch.jit.script(Net()).save(str(folder / "net.pt"))
        tensors = {"dtype": "float32", "shape": ["n"]}
        for name in ("one", "two"):
            ingot.create_torchscript_package(
                folder / name,
                name,
                [{"name": "x", **tensors}],
                [{"name": "out", **tensors}],
                module_path=folder / "net.pt",
                custom_ops=[folder / "libtriple.so"],
                test_input_data={"x": np.ones(2, np.float32)},
                test_expected_out={"out": np.full(2, 3)},
            )
        """,
    )
    made = subprocess.run(
        [sys.executable, program, tmp_path], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    user = (
        "import sys, numpy as np, ingot\n"
        "for path in sys.argv[1:]:\n"
        "    print(ingot.load(path, trust_code=True).infer({'x': np.ones(1, np.float32)}))\n"
    )
    used = subprocess.run(
        [sys.executable, "-c", user, tmp_path / "one", tmp_path / "two"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.stdout.count("array([3.]") == 2, used.stderr
    with pytest.raises(ingot.UntrustedCodeError, match="custom operators"):
        ingot.load(tmp_path / "one")
    assert ingot.inspect(tmp_path / "one")["custom_ops"] == ["libtriple.so"]


def test_an_operator_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "op.so").write_bytes(b"no library")
    with pytest.raises(ingot.ModelError, match=r"custom operator library op\.so cannot be loaded"):
        ingot.create_onnx_package(
            tmp_path / "bad",
            "bad",
            model_path=onnx_add(tmp_path / "add.onnx"),
            custom_ops=[tmp_path / "op.so"],
        )
