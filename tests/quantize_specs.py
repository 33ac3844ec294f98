"""Networks and files for the tests of quantization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from compress_specs import write_spec

GAINED = """

class Gained(Net):
    # Computes what Net does; but one channel is 2000 times as large where "second" takes it, so
    # that 8 bits for all channels leave nothing of the others.
    def __init__(self):
        super().__init__()
        gain = torch.ones(16)
        gain[3] = 2000.0
        self.register_buffer("gain", gain.reshape(1, -1, 1, 1), persistent=False)

    def forward(self, image):
        x = torch.max_pool2d(self.norm(self.first(image)).relu(), 2) * self.gain
        return self.head(self.second(x).relu().mean((2, 3)))


def build_gained():
    network = Gained()
    def divide(module, state, prefix, *rest):
        state["second.weight"] = state["second.weight"] / network.gain
    network._register_load_state_dict_pre_hook(divide, with_module=True)
    return network
"""


def write_gained(folder: Path, **changes: Any) -> Path:
    """Write the spec of a network in which one layer cannot have activations of 8 bits."""
    weights = "net.safetensors"
    model = {"framework": "torch", "entrypoint": "net:build_gained", "weights": weights}
    return write_spec(folder, GAINED, **{"model": model, **changes})


def export_onnx(spec: Path, folder: Path) -> Path:
    """Export the model of a spec; return the file."""
    import ingot

    return ingot.export(spec, "onnx", folder, mode="dynamic", evaluate=False).artifacts[0].path


def write_data(path: Path, labels: bool) -> Path:
    """Write the test images, with their labels or without."""
    from ingot.zoo.digits import load_digits

    images, targets = load_digits("test")
    arrays = {"image": images, **({"label": targets} if labels else {})}
    np.savez(path, **arrays)
    return path


def initializer_types(path: Path) -> dict[str, int]:
    """Return how many initializers of more than one element have each type, by ONNX's name."""
    import onnx

    found: dict[str, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        if np.prod(tensor.dims) > 32:
            name = onnx.TensorProto.DataType.Name(tensor.data_type)
            found[name] = found.get(name, 0) + 1
    return found
