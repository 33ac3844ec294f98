"""Exporters: one module a format, and the parity check that every file has to pass.

A new format is one module with ``export(job, variants) -> list[Draft]``, and one line in
``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

from ..errors import MissingDependencyError, UsageError
from ..specs.hints import did_you_mean
from .base import Draft, Job, Variant

__all__ = ["FORMATS", "Draft", "Format", "Job", "Variant", "check_format", "export_variants"]

_TORCH = ("torch",)
_SCRIPTS = ("torchscript",)
_TENSORFLOW = ("keras", "tensorflow")

_NAMES = {
    "torch": "PyTorch code",
    "torchscript": "TorchScript",
    "keras": "Keras",
    "tensorflow": "TensorFlow",
    "onnx": "ONNX",
    "python": "Python code",
    "ludwig": "Ludwig",
}


@dataclass(frozen=True)
class Format:
    """What is known of a format without importing its exporter.

    Attributes:
        module: the exporter, a module of this folder.
        sources: the frameworks whose models it takes.
        precisions: the types of weights that it can write.
        suffix: the end of its files' names.
        needs: modules that must be installed, and the extra that has them, by framework of the
            source; ``"*"`` are needed always.
        also: ends of the files that belong to each file.
        has_variants: fixed-shape files differ from the dynamic-shape one.
        static_sources: frameworks for which the converter fixes every size.
    """

    module: str
    sources: tuple[str, ...]
    precisions: tuple[str, ...]
    suffix: str
    needs: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    has_variants: bool = True
    also: tuple[str, ...] = ()
    static_sources: tuple[str, ...] = ()

    def file_names(self, stem: str, precision: str, variant: Variant) -> list[str]:
        """Return the names of the files that are written for a variant."""
        ends = (self.suffix, *self.also)
        if self.has_variants:
            return [variant.file_name(stem, precision, end) for end in ends]
        prefix = stem if precision == "fp32" else f"{stem}{precision}"
        return [f"{prefix}{end}" for end in ends]


_ONNX_NEEDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "*": (("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "onnx")),
    "keras": (("tf2onnx", "onnx"),),
    "tensorflow": (("tf2onnx", "onnx"),),
}

FORMATS = {
    "onnx": Format(
        "onnx", (*_TORCH, *_SCRIPTS, *_TENSORFLOW, "onnx"), ("fp32", "fp16"), ".onnx", _ONNX_NEEDS
    ),
    "jit": Format(
        "jit", (*_TORCH, *_SCRIPTS), ("fp32", "fp16", "bf16"), "_jit.pt", has_variants=False
    ),
    "pt2": Format("pt2", (*_TORCH, *_SCRIPTS), ("fp32", "fp16", "bf16"), ".pt2"),
    "savedmodel": Format("savedmodel", _TENSORFLOW, ("fp32",), "_savedmodel", has_variants=False),
    "tflite": Format(
        "tflite",
        (*_TORCH, *_SCRIPTS, *_TENSORFLOW),
        ("fp32", "fp16"),
        ".tflite",
        {
            "*": (("ai_edge_litert", "tflite"),),
            "torch": (("litert_torch", "tflite-torch"),),
            "torchscript": (("litert_torch", "tflite-torch"),),
        },
        static_sources=(*_TORCH, *_SCRIPTS),
    ),
    "openvino": Format(
        "openvino",
        (*_TORCH, *_SCRIPTS, *_TENSORFLOW, "onnx"),
        ("fp32", "fp16"),
        ".xml",
        {
            "*": (("openvino", "openvino"),),
            **dict.fromkeys((*_TORCH, *_SCRIPTS, "onnx"), _ONNX_NEEDS["*"]),
        },
        also=(".bin",),
    ),
    "safetensors": Format(
        "own",
        ("torch", "keras"),
        ("fp32",),
        ".json",
        {"torch": (("safetensors", "torch"),), "keras": (("safetensors", "tensorflow"),)},
        False,
        (".safetensors",),
    ),
}

_CLOSED = {
    "dlrt": (
        "dlrt is the closed format of Deeplite's runtime, which nothing else can write",
        "its open counterpart is ONNX, which holds weights of 2, 4 and 8 bits: --format onnx",
    ),
}


def check_format(name: str, framework: str, precision: str, label: str) -> Format:
    """Return a format after checking that it can be made of a model, before any work.

    Raises:
        UsageError: the format is unknown or closed, or cannot be made of such a model, or not in
            this precision; the message says what is possible.
        MissingDependencyError: a converter is not installed.
    """
    if name in _CLOSED:
        message, hint = _CLOSED[name]
        raise UsageError(f"{label}: {message}", hint=hint)
    entry = FORMATS.get(name)
    if entry is None:
        raise UsageError(
            f"unknown format {name!r}; expected one of {', '.join(FORMATS)}",
            hint=did_you_mean(name, FORMATS),
        )
    if framework not in entry.sources:
        possible = [other for other, found in FORMATS.items() if framework in found.sources]
        raise UsageError(
            f"{label}: {_NAMES.get(framework, framework)} cannot be exported to {name};"
            f" possible: {', '.join(possible) or 'nothing'}",
            hint=_alternative(name, framework, possible),
        )
    if precision not in entry.precisions:
        reason = ""
        if (name, precision) == ("onnx", "bf16"):
            reason = ": ONNX Runtime does not load bf16 files on a CPU"
        raise UsageError(
            f"{label}: {name} cannot be written in {precision}{reason};"
            f" possible: {', '.join(entry.precisions)}"
        )
    if (framework, name) == ("torchscript", "jit") and precision != "fp32":
        raise UsageError(
            f"{label}: TorchScript cannot be exported to jit in {precision}:"
            " its code may name fp32",
            hint="export the PyTorch code, or --format onnx --precision fp16",
        )
    needs = [*entry.needs.get("*", ()), *entry.needs.get(framework, ())]
    if precision == "fp16" and name == "onnx":
        needs.append(("onnxconverter_common", "onnx"))
    for module, extra in needs:
        if find_spec(module) is None:
            raise MissingDependencyError(
                f"{label}: {name} of {_NAMES[framework]} needs {module}, which is not installed",
                hint=f"pip install 'ingot[{extra}]'",
            )
    return entry


def _alternative(name: str, framework: str, possible: Sequence[str]) -> str:
    if framework not in _NAMES:
        return "export the model that it was exported from"
    if not possible:
        return "it can be packaged as it is: ingot package"
    if name == "tflite" and framework == "onnx":
        return "export the PyTorch, Keras or TensorFlow source of the ONNX file to tflite"
    if name in ("jit", "pt2"):
        return "these hold PyTorch programs; onnx runs nearly everywhere"
    if name == "savedmodel":
        return "a SavedModel holds a TensorFlow program; onnx runs nearly everywhere"
    if name == "safetensors":
        return "it needs the model's own class, which only code or a .keras file gives"
    return f"use --format {possible[0]}"


def export_variants(name: str, job: Job, variants: Sequence[Variant]) -> list[Draft]:
    """Write the files of one format; nothing is checked yet.

    Raises:
        IngotError: the model cannot be converted.
    """
    doubles = [
        spec.name
        for variant in variants
        for spec in (*variant.inputs, *variant.outputs)
        if spec.dtype == "float64"
    ]
    if job.precision != "fp32" and doubles:
        raise UsageError(
            f"{job.source.label}: {job.precision} is made of float32;"
            f" found {doubles[0]!r} in float64"
        )
    module = import_module(f".{FORMATS[name].module}", __name__)
    drafts: list[Draft] = module.export(job, variants)
    return drafts
