"""The export example of the Neutrino guide, cut out of it, mended, and run."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import exports
import numpy as np
import pytest
import yaml
from conftest import IngotCli

NET = """
    import torch
    from torch import nn


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(8)
            self.conv2 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(16)
            self.pool = nn.MaxPool2d(2)
            self.fc = nn.Linear(16, 10)

        def forward(self, image):
            x = self.pool(torch.relu(self.bn1(self.conv1(image))))
            x = self.pool(torch.relu(self.bn2(self.conv2(x))))
            return self.fc(x.mean((2, 3)))


    def build():
        torch.manual_seed(0)
        return Net()
"""


def example(shared: Path) -> dict[str, Any]:
    """Return the dictionary after the label ``_export_example``.

    Two things are wrong in it: ``<your_dir>`` is no value, and a comma is missing before a comment.
    """
    (guide,) = (shared / "seeds").glob("004_*.txt")
    text = guide.read_text(encoding="utf-8").partition("_export_example:")[2]
    block = re.search(r"code-block:: python\n\n((?: {4,}.*\n|\n)+)", text)
    assert block is not None
    assert "<your_dir>" in block.group(1)
    code = block.group(1).replace("<your_dir>", "'your_dir'")
    code = re.sub(r"('fp32')(\s+#)", r"\1,\2", code)
    found = ast.literal_eval("{" + code + "}")
    assert found == {
        "export": {
            "format": ["onnx"],
            "kwargs": {
                "root_path": "your_dir",
                "precision": "fp32",
                "resolutions": [(32, 32), (36, 36)],
            },
        }
    }
    return found


@pytest.mark.slow
def test_it_runs_with_its_dictionary(shared: Path, tmp_path: Path, ingot_cli: IngotCli) -> None:
    tensors = ("image: [batch, 3, height, width]", "y: [batch, 10]")
    spec = exports.torch_spec(tmp_path, NET, *tensors)
    document = yaml.safe_load(spec.read_text()) | example(shared)
    export = document["export"]["kwargs"]
    export["resolutions"] = [list(size) for size in export["resolutions"]]  # YAML has no tuples
    spec.write_text(yaml.safe_dump(document))

    done = ingot_cli("export", spec)

    assert done.returncode == 0, done.stderr
    made = tmp_path / "your_dir"
    assert exports.listing(made) == [
        "net32x32fp32.onnx",
        "net36x36fp32.onnx",
        "netfp32_dynamic_shape.onnx",
    ]
    image = np.random.default_rng(0).random((3, 3, 36, 36), np.float32)
    for size in (32, 36):
        feeds = {"image": image[:, :, :size, :size]}
        fixed = exports.run_onnx(made / f"net{size}x{size}fp32.onnx", feeds)
        dynamic = exports.run_onnx(made / "netfp32_dynamic_shape.onnx", feeds)
        assert fixed["y"].shape == (3, 10)
        assert exports.worst(dynamic, fixed) < 1e-5
