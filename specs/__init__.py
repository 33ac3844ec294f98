"""The spec loader: tensor specs, and the model spec that every command shares."""

from __future__ import annotations

from .declare import ENTRYPOINT, Component
from .dtypes import DTYPES, NEUROPOD_DTYPES, canonical_dtype, dtype_name, numpy_dtype
from .model import FRAMEWORK_KEYS, CodePath, DataPath, ModelSection
from .sections import (
    CustomCompressionSection,
    DataSection,
    EvaluationSection,
    ExportKwargs,
    ExportSection,
    ForwardPassSection,
    LayerPrecision,
    QuantizationArgs,
    Stage,
    TestSection,
)
from .spec import ModelSpec, ProblemSpec, load_spec
from .tensors import TensorSpec, format_shape, parse_shape, parse_tensor_specs
from .training import (
    EmaSection,
    FineTunerSection,
    FullTrainerSection,
    LoopParams,
    SchedulerSection,
    TrainingSection,
)

__all__ = [
    "DTYPES",
    "ENTRYPOINT",
    "FRAMEWORK_KEYS",
    "NEUROPOD_DTYPES",
    "CodePath",
    "Component",
    "CustomCompressionSection",
    "DataPath",
    "DataSection",
    "EmaSection",
    "EvaluationSection",
    "ExportKwargs",
    "ExportSection",
    "FineTunerSection",
    "ForwardPassSection",
    "FullTrainerSection",
    "LayerPrecision",
    "LoopParams",
    "ModelSection",
    "ModelSpec",
    "ProblemSpec",
    "QuantizationArgs",
    "SchedulerSection",
    "Stage",
    "TensorSpec",
    "TestSection",
    "TrainingSection",
    "canonical_dtype",
    "dtype_name",
    "format_shape",
    "load_spec",
    "numpy_dtype",
    "parse_shape",
    "parse_tensor_specs",
]
