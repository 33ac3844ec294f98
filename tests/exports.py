"""Helpers of the tests of ``export`` and ``diff``; nothing here is a test.

Exported files are run with their own runtimes, without Ingot.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models import write

Arrays = Mapping[str, np.ndarray[Any, Any]]


def listing(folder: Path) -> list[str]:
    """Return the names of all that is in a folder, hidden ones too; [] when it is not there."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def torch_spec(folder: Path, code: str, *tensors: str, model: str = "") -> Path:
    """Write ``net.py`` and the spec ``net.yaml`` of its ``build``; tensors are YAML, ``x: [n, 3]``.

    Names that start with ``y`` are outputs. Entries may be ``x: int64 [n, 3]``.
    """
    write(folder / "net.py", code)
    sections: dict[str, list[str]] = {"inputs": [], "outputs": []}
    for tensor in tensors:
        name, _, rest = tensor.partition(": ")
        dtype, _, shape = rest.rpartition(" [")
        entry = f"- {{name: {name}, dtype: {dtype or 'float32'}, shape: [{shape.lstrip('[')}}}"
        sections["outputs" if name.startswith("y") else "inputs"].append(entry)
    lines = ["name: net", f"model: {{framework: torch, entrypoint: net:build{model}}}"]
    for title, entries in sections.items():
        lines += [f"{title}:", *entries]
    path = folder / "net.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def run_onnx(path: Path, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Run an ONNX file with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_jit(path: Path, feeds: Arrays, outputs: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Run a TorchScript file with ``torch.jit.load``; inputs go by position."""
    import warnings

    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path))
        found = module(*(torch.from_numpy(array) for array in feeds.values()))
    named = found if isinstance(found, dict) else {outputs[0]: found}
    return {name: tensor.numpy() for name, tensor in named.items()}


def run_pt2(path: Path, feeds: Arrays, outputs: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Run a ``.pt2`` file with ``torch.export.load``."""
    import torch

    program = torch.export.load(path)
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    takes_names = bool(program.call_spec.in_spec.children()[1].num_leaves)
    args, kwargs = ((), tensors) if takes_names else (tuple(tensors.values()), {})
    with torch.no_grad():
        found = program.module()(*args, **kwargs)
    named = found if isinstance(found, dict) else {outputs[0]: found}
    return {name: tensor.numpy() for name, tensor in named.items()}


def run_savedmodel(path: Path, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Run the serving signature of a SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    served = loaded.signatures["serving_default"]
    found = served(**{name: tf.constant(array) for name, array in feeds.items()})
    return {name: tensor.numpy() for name, tensor in found.items()}


def run_tflite(path: Path, feeds: Arrays, per_sample: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Run a ``.tflite`` file with LiteRT, sample by sample where its batch is 1."""
    from ai_edge_litert.interpreter import Interpreter

    def run(batch: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner()
        return dict(runner(**batch))

    if not per_sample:
        return run(feeds)
    size = len(next(iter(feeds.values())))
    parts = [run({name: a[i : i + 1] for name, a in feeds.items()}) for i in range(size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_openvino(path: Path, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Run an OpenVINO file in fp32; left alone, it takes bf16 where the CPU has it."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino.Core().compile_model(str(path), "CPU", settings)(dict(feeds))
    return {port.get_any_name(): array for port, array in found.items()}


def worst(expected: Arrays, actual: Arrays) -> float:
    """Return the largest difference, relative to the largest value of each output."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].shape == array.shape, name
    return max(
        float(np.abs(array - actual[name]).max() / np.abs(array).max())
        for name, array in expected.items()
    )
