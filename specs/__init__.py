"""The spec loader: tensor specs, and the model spec that every command shares."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from .tune import ParameterSection, TuneSection

_MODULES = {
    "CodePath": "model",
    "Component": "declare",
    "CustomCompressionSection": "sections",
    "DTYPES": "dtypes",
    "DataPath": "model",
    "DataSection": "sections",
    "ENTRYPOINT": "declare",
    "EmaSection": "training",
    "EvaluationSection": "sections",
    "ExportKwargs": "sections",
    "ExportSection": "sections",
    "FRAMEWORK_KEYS": "model",
    "FineTunerSection": "training",
    "ForwardPassSection": "sections",
    "FullTrainerSection": "training",
    "LayerPrecision": "sections",
    "LoopParams": "training",
    "ModelSection": "model",
    "ModelSpec": "spec",
    "NEUROPOD_DTYPES": "dtypes",
    "ParameterSection": "tune",
    "ProblemSpec": "spec",
    "QuantizationArgs": "sections",
    "SchedulerSection": "training",
    "Stage": "sections",
    "TensorSpec": "tensors",
    "TestSection": "sections",
    "TrainingSection": "training",
    "TuneSection": "tune",
    "canonical_dtype": "dtypes",
    "dtype_name": "dtypes",
    "format_shape": "tensors",
    "load_spec": "spec",
    "numpy_dtype": "dtypes",
    "parse_shape": "tensors",
    "parse_tensor_specs": "tensors",
}
"""Where each name is defined: reading a package must not import the loader of specs."""

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
    "ParameterSection",
    "ProblemSpec",
    "QuantizationArgs",
    "SchedulerSection",
    "Stage",
    "TensorSpec",
    "TestSection",
    "TrainingSection",
    "TuneSection",
    "canonical_dtype",
    "dtype_name",
    "format_shape",
    "load_spec",
    "numpy_dtype",
    "parse_shape",
    "parse_tensor_specs",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
