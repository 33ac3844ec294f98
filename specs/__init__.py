"""The spec loader: tensor specs with symbols, the model spec, and changes to it."""

from __future__ import annotations

from .dtypes import DTYPES, canonical_dtype
from .model_spec import ModelSpec, load_spec
from .tensors import Dimension, TensorSpec, format_shape, parse_tensor_specs

__all__ = [
    "DTYPES",
    "Dimension",
    "ModelSpec",
    "TensorSpec",
    "canonical_dtype",
    "format_shape",
    "load_spec",
    "parse_tensor_specs",
]
