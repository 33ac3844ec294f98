"""Checks tensors against their specs: names, element types, shapes and symbols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..specs.dtypes import dtype_name, numpy_dtype
from ..specs.tensors import Dimension, TensorSpec, format_shape


class TensorChecker:
    """Checks the arrays of one call against the inputs, or the outputs, of a model.

    Args:
        specs: the tensors; an unknown dtype or shape (None) fits everything.
        kind: ``input`` or ``output``, for messages. A symbol means one size within one call of one
            kind: inputs and outputs have symbols of their own.
        label: the model, for messages.
    """

    def __init__(self, specs: Sequence[TensorSpec], kind: str, label: str) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._kind = kind
        self._label = label
        self._required = frozenset(spec.name for spec in specs if not spec.optional)
        self._fast = {
            spec.name: (
                numpy_dtype(spec.dtype) if spec.dtype not in (None, "string") else None,
                spec.shape,
                spec,
            )
            for spec in specs
        }

    def __call__(
        self, arrays: Mapping[str, Any], required: frozenset[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays by name, in the order given, or say what does not fit.

        Args:
            arrays: values by tensor name; what is no array yet is made one, without a cast.
            required: names that must be there; None means all that are not optional.

        Raises:
            InputError: a name is missing or unknown, or a dtype, rank, dimension or symbol differs.
        """
        checked: dict[str, np.ndarray[Any, Any]] = {}
        symbols: dict[Dimension, tuple[int, str, int]] = {}
        for name, value in arrays.items():
            entry = self._fast.get(name)
            if entry is None:
                raise self._unknown(name)
            dtype, shape, spec = entry
            array = value if type(value) is np.ndarray else self._as_array(spec, value)
            # None is no dtype here, but NumPy takes it for float64.
            if dtype is None or (array.dtype is not dtype and array.dtype != dtype):
                array = self._check_dtype(array, spec)
            checked[name] = array
            if shape is None:
                continue
            found = array.shape
            if len(found) != len(shape):
                raise self._error(
                    spec,
                    f"found {len(found)} dimensions, {format_shape(found)};"
                    f" expected {len(shape)}, {format_shape(shape)}",
                )
            for index, wanted in enumerate(shape):
                if wanted is None:
                    continue
                size = found[index]
                if type(wanted) is int:
                    if size == wanted:
                        continue
                    raise self._error(
                        spec,
                        f"dimension {index} is {size}; expected {wanted},"
                        f" as the spec is {format_shape(shape)}",
                    )
                first = symbols.get(wanted)
                if first is None:
                    symbols[wanted] = (size, name, index)
                elif first[0] != size:
                    raise self._error(
                        spec,
                        f"dimension {index} is {size}; expected {first[0]}, because the symbol"
                        f" {wanted!r} is {first[0]} in dimension {first[2]} of {first[1]!r}",
                    )
        if len(checked) != len(self._specs):  # every name is known: as many are all of them
            needed = self._required if required is None else required
            if not needed <= checked.keys():
                raise self._missing(needed - checked.keys())
        return checked

    def _as_array(self, spec: TensorSpec, value: Any) -> np.ndarray[Any, Any]:
        try:
            return np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._error(
                spec, f"found a {type(value).__name__} that is no array: {error}"
            ) from error

    def _check_dtype(self, array: np.ndarray[Any, Any], spec: TensorSpec) -> np.ndarray[Any, Any]:
        if spec.dtype is None:
            return array
        if spec.dtype == "string":
            if array.dtype.kind == "U":
                return array
            if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat):
                return array.astype(np.str_)
            if array.size == 0 and array.dtype == np.float64:  # np.asarray([]) of no strings
                return array.astype(np.str_)
        found = dtype_name(array.dtype)
        if array.dtype.kind == "S":
            found = "bytes"
        elif array.dtype.kind == "O":
            found = "Python objects"
        elif found == spec.dtype:  # another byte order
            return array.astype(array.dtype.newbyteorder("="))
        cast = "astype(str)" if spec.dtype == "string" else f"astype({spec.dtype!r})"
        raise self._error(
            spec,
            f"found dtype {found or array.dtype}; expected {spec.dtype}",
            hint=f"cast it first: {spec.name}.{cast}" if self._kind == "input" else None,
        )

    def _error(self, spec: TensorSpec, message: str, hint: str | None = None) -> InputError:
        return InputError(f"{self._label}: {self._kind} {spec.name!r}: {message}", hint=hint)

    def _unknown(self, name: str) -> InputError:
        from difflib import get_close_matches

        near = get_close_matches(str(name), list(self._specs), n=1)
        names = ", ".join(repr(known) for known in self._specs) or "none"
        return InputError(
            f"{self._label}: unknown {self._kind} {name!r}; expected {names}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )

    def _missing(self, names: frozenset[str] | set[str]) -> InputError:
        first = next(name for name in self._specs if name in names)
        spec = self._specs[first]
        return InputError(
            f"{self._label}: {self._kind} {first!r} is missing; expected {spec.describe()}"
        )
