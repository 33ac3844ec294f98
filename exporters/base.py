"""What all exporters share: the job, the shapes of each file, and what an exporter returns."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IngotError, ModelError
from ..frameworks import Model, ModelSource
from ..frameworks.base import first_line
from ..specs.tensors import TensorSpec

Array = np.ndarray[Any, Any]
Resolution = tuple[int, int]


@dataclass(frozen=True)
class Variant:
    """The shapes of one file.

    Attributes:
        resolution: height and width of its images; None when they are free, or it has no images.
        inputs: the inputs; integers are fixed, symbols and None are free.
        outputs: the outputs, likewise.
        example: inputs of these shapes, to trace with; a free batch is 2 in it.
        is_fixed: every dimension is fixed.
        retrace: the shapes are others than those that the source declares.
    """

    resolution: Resolution | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Mapping[str, Array]
    is_fixed: bool = False
    retrace: bool = False

    @property
    def name(self) -> str:
        """``dynamic_shape``, ``32x32`` or ``fixed``, for progress and tables."""
        if self.resolution is not None:
            return "{}x{}".format(*self.resolution)
        return "fixed" if self.is_fixed else "dynamic_shape"

    def file_name(self, stem: str, precision: str, suffix: str) -> str:
        """Return ``STEMfp32_dynamic_shape.onnx`` or ``STEM32x32fp32.onnx``, as Neutrino does."""
        if self.resolution is not None:
            return f"{stem}{self.name}{precision}{suffix}"
        return f"{stem}{precision}{'' if self.is_fixed else '_dynamic_shape'}{suffix}"


@dataclass(frozen=True)
class Job:
    """What is to be exported, and how.

    Attributes:
        source: where the model comes from.
        model: the model, loaded in this process.
        stem: start of every file's name.
        folder: where to write; nothing in it is the user's yet.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        opset: of ONNX files; None takes the converter's default.
        bn_fusion: fold BatchNorm into the layer before it.
        fp16_io: inputs and outputs of an fp16 file are fp16, too.
        metadata: what a file says of its origin: JSON texts by key.
        spec: the spec of the source as JSON values, for formats that record it.
        shared: what the variants and formats of one export have in common, by its maker.
    """

    source: ModelSource
    model: Model
    stem: str
    folder: Path
    precision: str = "fp32"
    opset: int | None = None
    bn_fusion: bool = True
    fp16_io: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] | None = None
    shared: dict[Any, Any] = field(default_factory=dict, compare=False)

    def runner(
        self,
        framework: str,
        path: Path,
        inputs: Sequence[TensorSpec] | None = None,
        outputs: Sequence[TensorSpec] | None = None,
    ) -> ModelSource:
        """Return how to run a written file; tensors only where it does not say them itself."""
        return ModelSource(
            framework,
            path.name,
            None if inputs is None else self.runner_specs(inputs),
            None if outputs is None else self.runner_specs(outputs),
            path,
            custom_ops=self.source.custom_ops if framework == self.source.framework else (),
        )

    def runner_specs(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """Return the tensors of a file whose inputs and outputs are as precise as its weights."""
        if self.precision == "fp32" or not self.fp16_io:
            return tuple(specs)
        dtype = {"fp16": "float16", "bf16": "bfloat16"}[self.precision]
        return tuple(
            replace(spec, dtype=dtype) if spec.dtype == "float32" else spec for spec in specs
        )

    def path(self, variant: Variant, suffix: str) -> Path:
        """Return where the file of a variant is written."""
        return self.folder / variant.file_name(self.stem, self.precision, suffix)


@dataclass(frozen=True)
class Draft:
    """A file (or folder) that was written and is not checked yet.

    Attributes:
        path: the file to hand over.
        variant: its shapes.
        runner: how to run it.
        companions: files that belong to it (weights beside a graph).
        per_sample: the converter fixed the batch to 1; larger ones are run sample by sample.
        notes: what the user should know of it.
    """

    path: Path
    variant: Variant
    runner: ModelSource
    companions: tuple[Path, ...] = ()
    per_sample: bool = False
    notes: tuple[str, ...] = ()


@contextmanager
def converting(label: str, converter: str) -> Iterator[None]:
    """Hold back what a converter prints; log it, and say in one line what it could not do.

    Raises:
        ModelError: the converter raised anything but an IngotError.
    """
    import logging

    levels = {name: logging.getLogger(name).level for name in _LOUD}
    try:
        with _held_output(label), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in _LOUD:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    except IngotError:
        raise
    except Exception as error:
        raise ModelError(f"{label}: {converter} cannot convert it: {first_line(error)}") from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


_LOUD = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "tf2onnx", "tensorflow", "absl")


@contextmanager
def _held_output(label: str) -> Iterator[None]:
    """Send standard output and error to a file while converters write to them in C++, too."""
    import logging

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = (os.dup(1), os.dup(2))
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 1)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, copy in enumerate(saved, 1):
                os.dup2(copy, number)
                os.close(copy)
            held.seek(0)
            printed = held.read().decode(errors="replace").strip()
            if printed:
                logging.getLogger("ingot").debug("%s: the converter printed:\n%s", label, printed)


def fixed_batch(specs: Sequence[TensorSpec], batch: int) -> tuple[TensorSpec, ...]:
    """Return tensor specs with a free leading dimension set to ``batch``."""
    return tuple(
        TensorSpec(spec.name, spec.dtype, (batch, *spec.shape[1:]), spec.optional)
        if spec.shape and not isinstance(spec.shape[0], int)
        else spec
        for spec in specs
    )
