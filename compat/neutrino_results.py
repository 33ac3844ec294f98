"""What a search has found, as a module of the class that was given."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..frameworks.base import import_framework

if TYPE_CHECKING:
    from torch import nn

    from ..optimizers.verdict import Verdict


def pruned_module(verdict: Verdict, model: nn.Module) -> nn.Module:
    """Return the module that ``compress`` has found, in eval mode.

    Args:
        verdict: how the search ended.
        model: the module that was given; it stays as it is.

    Raises:
        ModelError: the result is gone.
    """
    from ..optimizers.pruning import load_compressed
    from ..optimizers.pruning.modules import copy_module

    path = _artifact(verdict, "safetensors")
    return copy_module(model).eval() if path is None else load_compressed(path, model)


def quantized_module(verdict: Verdict, model: nn.Module) -> nn.Module:
    """Return a module with the weights of the ONNX file that ``quantize`` has found, as floats.

    What was trained for its rounding has all the weights, and the BatchNorm, of that training.

    Args:
        verdict: how the search ended.
        model: the module that was given; it stays as it is.

    Returns:
        a copy in eval mode; a warning names the layers whose weights are no parameter of it.

    Raises:
        ModelError: the result, or what it was made of, is gone.
    """
    from ..frameworks.pytorch import load_weights
    from ..optimizers.journal import read_journal
    from ..optimizers.pruning.modules import copy_module
    from ..optimizers.quantization.plan import Precision
    from ..optimizers.quantization.prepare import prepare
    from ..optimizers.quantization.rounded_network import rounded_network
    from ..optimizers.quantization.trials import TRIALS

    network = copy_module(model)
    path = _artifact(verdict, "onnx")
    if path is None:
        return network.eval()
    onnx = import_framework("onnx", "onnx")
    quantized = onnx.load(str(path))
    graph = next(item.path for item in verdict.reference_artifacts if item.format == "onnx")
    records = read_journal(verdict.run_dir)
    hashes = {item.sha256 for item in verdict.artifacts}
    name = next(
        record["name"]
        for record in reversed(records)
        if record["kind"] == "shipped" and hashes & _hashes(record)
    )
    if any(record["kind"] == "trained" and record["name"] == name for record in records):
        trial = verdict.run_dir / TRIALS / name
        weights, graph = trial.with_suffix(".safetensors"), trial.with_suffix(".float.onnx")
        load_weights(network, weights, f"trial {name}")
    elif any(record["kind"] == "calibrated" and record["equalized"] for record in records):
        quantized = None  # its integers are those of equalised weights
    plan = {
        layer["name"]: Precision(layer["weight_bits"], layer["activation_bits"])
        for layer in verdict.layers or ()
    }
    made, left = rounded_network(network, prepare(graph), plan, quantized)
    for layer, reason in left.items():
        logging.getLogger("ingot").warning("layer %s stays float in the module: %s", layer, reason)
    return made.eval()


def _hashes(record: dict[str, object]) -> set[str]:
    files = record.get("files")
    return {item["sha256"] for item in files} if isinstance(files, list) else set()


def _artifact(verdict: Verdict, format_: str) -> Path | None:
    """Return the file of a format that ships; None, and a warning, where nothing was found."""
    found = next((item for item in verdict.artifacts if item.format == format_), None)
    if found is None:
        logging.getLogger("ingot").warning("nothing smaller was found: the model is as it was")
        return None
    for item in verdict.artifacts:
        if not item.path.exists():
            hint = f"remove {verdict.run_dir} to search once more"
            if item is found:
                raise ModelError(f"{item.path}: the result is gone", hint=hint)
            logging.getLogger("ingot").warning("%s is gone; %s", item.path, hint)
    return found.path
