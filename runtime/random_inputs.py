"""Seeded random inputs that respect a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..specs.dtypes import numpy_dtype
from ..specs.tensors import Dimension, TensorSpec

Array = np.ndarray[Any, Any]

Key = str | int
"""A symbol; or the position of dimensions of any size, which share one size."""

Sizes = Mapping[Key, int]

_WORDS = ("alpha", "beta", "gamma", "delta")


def seeded_inputs(
    inputs: Sequence[TensorSpec], sizes: Sizes, seed: int, *, wide: bool = False
) -> dict[str, Array]:
    """Return random inputs: floats in 0 to 1, integers in 0 to 3, words; optional ones left out.

    Such values suit most models: square roots, logarithms, indices of an embedding. ``wide`` takes
    others, which not every model does: floats from N(0, 3²), integers in 0 to 100.
    """
    arrays: dict[str, Array] = {}
    for index, spec in enumerate(inputs):
        if spec.optional:
            continue
        random = np.random.default_rng([seed, index])
        named = keyed_dimensions(spec)
        shape = tuple(dim if isinstance(dim, int) else sizes[key] for dim, key in named)
        assert spec.dtype is not None
        if spec.dtype == "string":
            words = random.integers(0, len(_WORDS), shape)
            arrays[spec.name] = np.asarray(np.asarray(_WORDS)[words], dtype=np.str_)
            continue
        dtype = numpy_dtype(spec.dtype)
        if dtype.kind in "fV":
            values = 3 * random.standard_normal(shape) if wide else random.random(shape)
            arrays[spec.name] = np.asarray(values).astype(dtype)
        else:
            limit = 2 if dtype.kind == "b" else 101 if wide else 4
            arrays[spec.name] = np.asarray(random.integers(0, limit, shape)).astype(dtype)
    return arrays


def keyed_dimensions(spec: TensorSpec) -> list[tuple[Dimension, Key]]:
    """Return each dimension with the key under which its size is looked up."""
    return [(dim, dim if isinstance(dim, str) else i) for i, dim in enumerate(spec.shape or ())]
