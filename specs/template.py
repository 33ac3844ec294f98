"""Writes the text of a commented spec: what ``ingot init`` gives a user to start from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .tensors import TensorSpec

_PLAIN = re.compile(r"[A-Za-z_/][\w/.:-]*(?<!:)|\.{1,2}(/[\w/.-]*)?", re.ASCII)
_WORDS = ("null", "true", "false")

_EXAMPLES = """\
# What follows is optional: take the leading # off the lines that you need.

# The data: a function in data.py beside this file that returns {"train": iterable, "test":
# iterable}; each item is a batch, (inputs, labels) say. kwargs are its arguments.
#data: {splits: data:loaders, kwargs: {batch_size: 128}}

# What is measured: a function (model, loader) that returns a dict of metrics, and the one of them
# that counts.
#loss: cross_entropy
#evaluation: {function: data:accuracy, eval_key: accuracy, eval_split: test, higher_is_better: true}

# What is minimised (compression: bytes, latency: time, quantization: bits), and by how much the
# metric may drop for it, in its own range.
#optimization: {mode: compression, delta: 1.0, level: 1, deepsearch: false}
#fine_tuner: {loop_params: {epochs: 1}}

# What it is exported to: onnx, jit, pt2, savedmodel, tflite, openvino, safetensors.
#export: {format: [onnx], kwargs: {precision: fp32}}
"""


def render_spec(
    name: str,
    origin: str,
    model: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    golden: str,
    *,
    has_golden: bool = True,
    notes: Sequence[str] = (),
    todo: str | None = None,
) -> str:
    """Return the YAML text of a spec.

    Args:
        name: the model's name.
        origin: what it was made from, for its first comment.
        model: the section ``model``, plain values.
        inputs: the inputs.
        outputs: the outputs.
        golden: the file of golden inputs, relative to the spec.
        has_golden: there is such a file; else the section ``test`` is a comment.
        notes: comments on the section ``model``, a line each.
        todo: why there is no golden data, marked as a TODO.
    """
    lines = [
        f"# Written by `ingot init` from {_comment(origin)}.",
        "# Every key is explained in docs/spec.md; `ingot --spec-schema` names its schema.",
        f"name: {flow(name)}",
        "",
        "model:",
        *(f"  # {_comment(note)}" for note in notes),
        *(f"  {key}: {flow(value)}" for key, value in model.items()),
        "",
        "# A shape holds sizes, symbols (the same size wherever they stand) and null (any size).",
        "inputs:",
        *(f"  - {flow(spec.to_dict())}" for spec in inputs),
        "outputs:",
        *(f"  - {flow(spec.to_dict())}" for spec in outputs),
        "",
    ]
    if todo is not None:
        lines.append(f"# TODO: {_comment(todo)}")
    lines += [
        "# Golden data: a package is tested with these inputs; real ones test more than random.",
        "# What the model itself returns is recorded, unless `expected:` names another file.",
        f"{'' if has_golden else '#'}test: {{inputs: {flow(golden)}, rtol: 1.0e-4, atol: 1.0e-5}}",
        "",
    ]
    return "\n".join(lines) + "\n" + _EXAMPLES


def flow(value: Any) -> str:
    """Return a plain value in YAML's flow style, on one line, quoted where that is needed."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), repr(value))
    return json.dumps(value)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
