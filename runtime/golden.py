"""Golden data: recorded inputs and outputs that prove a package still computes the same."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, PackageError
from ..specs.tensors import TensorSpec, format_shape
from .npz import dump_npz as dump_npz
from .npz import read_npz as read_npz
from .npz import read_npz_headers as read_npz_headers
from .npz import restore_dtype as restore_dtype
from .npz import write_npy as write_npy

DEFAULT_RTOL = 1e-4
DEFAULT_ATOL = 1e-5

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that belong to them.

    Attributes:
        inputs: arrays by input name.
        outputs: arrays by output name; None when only a run without error is asked for.
        rtol: permitted relative difference.
        atol: permitted absolute difference, in the unit of the output.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array] | None
    rtol: float = DEFAULT_RTOL
    atol: float = DEFAULT_ATOL

    def to_npz(self) -> bytes:
        """Return an uncompressed ``.npz`` with entries in sorted order and fixed times."""
        named = {f"input/{name}": array for name, array in self.inputs.items()}
        named |= {f"output/{name}": array for name, array in (self.outputs or {}).items()}
        return dump_npz(named)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Array],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        tolerances: Mapping[str, float],
    ) -> Golden:
        """Take ``input/NAME`` and ``output/NAME`` arrays apart."""
        taken = {
            prefix: {
                name.removeprefix(prefix): restore_dtype(array, name.removeprefix(prefix), specs)
                for name, array in arrays.items()
                if name.startswith(prefix)
            }
            for prefix, specs in (("input/", inputs), ("output/", outputs))
        }
        return cls(
            taken["input/"],
            taken["output/"] or None,
            float(tolerances.get("rtol", DEFAULT_RTOL)),
            float(tolerances.get("atol", DEFAULT_ATOL)),
        )


@dataclass(frozen=True)
class Difference:
    """How an output differs from what was expected of it.

    Attributes:
        name: the output.
        message: one line: the largest absolute and relative difference and where, or what else.
        max_absolute: largest absolute difference; None when the values cannot be subtracted.
        max_relative: largest difference relative to the expected value, likewise.
    """

    name: str
    message: str
    max_absolute: float | None = None
    max_relative: float | None = None


def compare(
    expected: Mapping[str, Array],
    actual: Mapping[str, Array],
    rtol: float = DEFAULT_RTOL,
    atol: float = DEFAULT_ATOL,
) -> list[Difference]:
    """Compare outputs by value and shape; dtypes may differ, shapes are never broadcast.

    A value passes when ``|actual - expected| <= atol + rtol * |expected|`` (as ``numpy.isclose``);
    NaN equals nothing, infinities equal themselves.

    Returns:
        one entry for each output that differs, sorted by name; empty when all agree.
    """
    differences = []
    for name in sorted(expected):
        if name not in actual:
            differences.append(Difference(name, f"output {name!r}: the model did not return it"))
            continue
        difference = _compare_one(name, expected[name], actual[name], rtol, atol)
        if difference is not None:
            differences.append(difference)
    return differences


def _compare_one(
    name: str, expected: Array, actual: Array, rtol: float, atol: float
) -> Difference | None:
    if expected.shape != actual.shape:
        return Difference(
            name,
            f"output {name!r}: found shape {format_shape(actual.shape)};"
            f" expected {format_shape(expected.shape)}",
        )
    if expected.dtype.kind in "USO" or actual.dtype.kind in "USO":
        return _compare_strings(name, expected, actual)
    wide = np.complex128 if "c" in expected.dtype.kind + actual.dtype.kind else np.float64
    if expected.dtype.kind in "biu" and actual.dtype.kind in "biu":
        same = expected == actual
    else:
        same = np.isclose(
            actual.astype(wide), expected.astype(wide), rtol=rtol, atol=atol, equal_nan=False
        )
    if np.all(same):
        return None
    left, right = actual.astype(wide), expected.astype(wide)
    with np.errstate(all="ignore"):
        absolute = np.abs(left - right)
        relative = absolute / np.abs(right)
    # A NaN is further away than any number; what passed does not count.
    order = np.where(same, -1.0, np.where(np.isnan(absolute), np.inf, absolute))
    worst = np.unravel_index(int(np.argmax(order)), order.shape) if order.ndim else ()
    count = int(np.size(same) - np.count_nonzero(same))
    max_absolute, max_relative = float(absolute[worst]), _largest(relative)
    place = f"[{', '.join(str(int(index)) for index in worst)}]" if worst else "the scalar"
    return Difference(
        name,
        f"output {name!r}: {count} of {np.size(same)} values differ; largest absolute difference"
        f" {max_absolute:.4g} at {place} (found {actual[worst]!s}, expected"
        f" {expected[worst]!s}), largest relative difference {max_relative:.4g};"
        f" permitted: rtol {rtol:g}, atol {atol:g}",
        max_absolute,
        max_relative,
    )


def _largest(values: Array) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.max()) if finite.size else float("nan")


def _compare_strings(name: str, expected: Array, actual: Array) -> Difference | None:
    if expected.dtype.kind not in "USO" or actual.dtype.kind not in "USO":
        return Difference(name, f"output {name!r}: found {actual.dtype}; expected {expected.dtype}")
    same = np.asarray(expected.astype(np.str_) == actual.astype(np.str_))
    if np.all(same):
        return None
    worst = np.unravel_index(int(np.argmin(same)), same.shape) if same.ndim else ()
    count = int(np.size(same) - np.count_nonzero(same))
    return Difference(
        name,
        f"output {name!r}: {count} of {np.size(same)} strings differ; first at"
        f" [{', '.join(str(int(index)) for index in worst)}]: found {str(actual[worst])!r},"
        f" expected {str(expected[worst])!r}",
    )


def refuse_nan(outputs: Mapping[str, Array], label: str) -> None:
    """Check that expected outputs can be compared at all.

    Raises:
        InputError: one holds a NaN, which equals nothing.
    """
    for name, array in outputs.items():
        if array.dtype.kind == "V" or array.dtype.kind in "fc":
            nan = np.isnan(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))
            if nan.any():
                first = [int(index) for index in np.argwhere(nan)[0]] if nan.ndim else []
                raise InputError(
                    f"{label}: golden output {name!r} holds {int(nan.sum())} NaN,"
                    f" first at {first}; a NaN equals nothing, so it cannot be checked"
                )


class _ArrayUnpickler(pickle.Unpickler):
    """Reads what Neuropod pickles, dicts of NumPy arrays, and nothing else."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def read_neuropod_golden(data: bytes, label: str) -> Golden:
    """Read the pickle that Neuropod writes: ``{"test_input": ..., "test_output": ...}``.

    Only dicts, lists, strings, numbers and NumPy arrays can come out of it.

    Raises:
        PackageError: it holds something else.
    """
    where = f"{label}: test_data.pkl"
    try:
        content = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        inputs = {name: np.asarray(value) for name, value in content["test_input"].items()}
        expected = content.get("test_output")
        outputs = expected and {name: np.asarray(value) for name, value in expected.items()}
    except Exception as error:
        raise PackageError(f"{where}: not plain NumPy data: {error}") from error
    return Golden(inputs, outputs or None)
