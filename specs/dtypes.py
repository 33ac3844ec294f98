"""Names of tensor element types, and the NumPy types that carry them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError, SpecError
from .hints import did_you_mean

if TYPE_CHECKING:
    import numpy as np

NEUROPOD_DTYPES = (
    "float32",
    "float64",
    "string",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
"""The element types that Neuropod's format defines."""

DTYPES = (*NEUROPOD_DTYPES, "bool", "float16", "bfloat16")
"""Every element type of a tensor spec: Neuropod's, and three that Ingot adds."""

_ALIASES = {
    "float": "float64",
    "double": "float64",
    "single": "float32",
    "half": "float16",
    "int": "int64",
    "long": "int64",
    "uint": "uint64",
    "byte": "int8",
    "ubyte": "uint8",
    "short": "int16",
    "ushort": "uint16",
    "intc": "int32",
    "uintc": "uint32",
    "longlong": "int64",
    "ulonglong": "uint64",
    "bool_": "bool",
    "str": "string",
    "str_": "string",
    "unicode": "string",
}


def canonical_dtype(name: object) -> str:
    """Return the canonical spelling of an element type.

    Args:
        name: a name of :data:`DTYPES`, a NumPy alias (``"double"``, ``"<f4"``), type or dtype.

    Raises:
        SpecError: it is no known element type.
    """
    if isinstance(name, str):
        if name in DTYPES:
            return name
        if name in _ALIASES:
            return _ALIASES[name]
    found = _numpy_name(name)
    if found is None:
        raise SpecError(
            f"unknown dtype {name!r}; expected one of {', '.join(DTYPES)}",
            hint=did_you_mean(name, DTYPES) if isinstance(name, str) else None,
        )
    return found


def _numpy_name(name: object) -> str | None:
    import numpy as np

    # NumPy also takes None, lists and dicts, for other things than element types.
    if not isinstance(name, str | type | np.dtype):
        return None
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return None
    return dtype_name(dtype)


def dtype_name(dtype: np.dtype[Any]) -> str | None:
    """Return the canonical name of a NumPy dtype, or None when no tensor spec can say it."""
    if dtype.kind in "US":
        return "string"
    return dtype.name if dtype.name in DTYPES else None


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype that carries a canonical element type (``str_`` for ``string``).

    Raises:
        MissingDependencyError: bfloat16 without the package ml_dtypes.
    """
    import numpy as np

    if name == "string":
        return np.dtype(np.str_)
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise MissingDependencyError(
                "bfloat16 tensors need the package ml_dtypes",
                hint="pip install ml_dtypes",
            ) from error
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
