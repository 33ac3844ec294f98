"""Tensors on the command line and in files: inline values, ``.npy``, ``.npz`` and JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IngotError, InputError, OutputExistsError, UsageError
from ..specs import TensorSpec
from ..specs.tensors import format_shape

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

STANDARD_STREAM = "-"

_MAX_DIMENSIONS = 64
"""NumPy has no more."""

_MAX_SHOWN = 60
_SPECIAL = ("NaN", "Infinity", "-Infinity")


def parse_assignment(text: str, specs: Mapping[str, TensorSpec]) -> tuple[str, Array]:
    """Parse ``NAME=VALUE``: a ``.npy`` file, ``@file.json``, or an inline number, string or list.

    Args:
        text: the assignment.
        specs: the model's inputs by name.

    Raises:
        UsageError: it has no ``=``.
        InputError: the value cannot be read, or does not fit the input's dtype.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UsageError(f"-i {text}: expected NAME=VALUE", hint="for example -i x='[1, 2, 3]'")
    label = f"-i {name}"
    spec = specs.get(name) or TensorSpec(name, None, None)
    if value.startswith("@"):
        source = Path(value[1:]).expanduser()
        return name, to_array(read_json(source, label, spec), spec, label)
    if value.endswith(".npy"):
        return name, _read_npy(Path(value).expanduser(), spec, label)
    try:
        parsed = _parse_json(value, spec, label)
    except InputError:
        raise
    except ValueError:
        if spec.dtype not in (None, "string"):
            raise InputError(
                f"{label}: found {_cut(value)!r}; expected a .npy file, @file.json, or {spec.dtype}"
                " values such as 1.5 or '[[1, 2], [3, 4]]'"
            ) from None
        parsed = value
    else:
        if spec.dtype == "string" and not isinstance(parsed, str | list):
            parsed = value
    return name, to_array(parsed, spec, label)


def read_inputs(file: str, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """Read arrays by input name from a ``.npz``, a ``.json``, or (``-``) standard input.

    JSON holds an object of (nested) lists by input name. Standard input may be either.

    Raises:
        InputError: it cannot be read, or a value does not fit its input's dtype.
    """
    import io

    from ..runtime.npz import read_npz, restore_dtype

    if file == STANDARD_STREAM:
        label, data = "standard input", sys.stdin.buffer.read()
        is_npz = data[:2] == b"PK"
        source: Any = io.BytesIO(data)
    else:
        path = Path(file).expanduser()
        label, source, is_npz = file, path, path.suffix == ".npz"
        if not path.is_file():
            raise InputError(f"{file}: no such file")
        if path.suffix not in (".npz", ".json"):
            raise InputError(f"{file}: expected an .npz or .json file")
    if is_npz:
        arrays = read_npz(source, label)
        known = list(specs.values())
        return {name: restore_dtype(array, name, known) for name, array in arrays.items()}
    values = read_json(source, label)
    if not isinstance(values, dict):
        raise InputError(f"{label}: found a {type(values).__name__}; expected an object of arrays")
    return {
        name: to_array(value, specs.get(name) or TensorSpec(name, None, None), f"{label}: {name}")
        for name, value in values.items()
    }


def read_json(source: Any, label: str, spec: TensorSpec | None = None) -> Any:
    """Parse JSON from a path or a binary stream.

    Args:
        source: the path or the stream.
        label: what to call it in messages.
        spec: the input that it holds, when it holds only one.

    Raises:
        InputError: it cannot be read, or holds a number that no float can.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        return _parse_json(data.decode(json.detect_encoding(data)), spec, label)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{label}: {source}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{label}: not valid JSON: {error}") from error


def _parse_json(text: str, spec: TensorSpec | None, label: str) -> Any:
    def parse_float(digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            wanted = (spec and spec.dtype) or "float64"
            raise InputError(f"{label}: found a number too large for {wanted}: {_cut(digits)}")
        return number

    # A string may be written without quotes, so nothing is too large for it.
    is_text = spec is not None and spec.dtype == "string"
    try:
        return json.loads(text, parse_float=float if is_text else parse_float)
    except RecursionError:
        raise _too_deep(_depth_of_text(text), spec, label) from None


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _too_deep(depth: int, spec: TensorSpec | None, label: str) -> InputError:
    expected = f"at most {_MAX_DIMENSIONS}"
    if spec is not None and spec.shape is not None:
        expected = f"{len(spec.shape)}, {format_shape(spec.shape)}"
    return InputError(f"{label}: found lists nested {depth} deep; expected {expected}")


def _depth_of_text(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(depth, deepest)
    return deepest


def _depth(value: Any) -> int:
    depth = 0
    level = [value]
    while level := [item for item in level if isinstance(item, list)]:
        depth += 1
        level = [item for items in level for item in items]
    return depth


def to_array(value: Any, spec: TensorSpec, label: str) -> Array:
    """Make an array of the input's dtype from numbers, strings, booleans or nested lists of them.

    Text has no dtype, so this is no cast of the user's data: but every value must be kept exactly
    (no fraction for integers, no overflow), save for the rounding of decimals to the float type.

    Raises:
        InputError: a value does not fit, or the lists are ragged.
    """
    import numpy as np

    from ..specs.dtypes import numpy_dtype

    try:
        array = np.asarray(value)
    except ValueError as error:
        depth = _depth(value)
        if depth > _MAX_DIMENSIONS:
            raise _too_deep(depth, spec, label) from error
        raise InputError(f"{label}: the nested lists are not of equal lengths") from error
    if spec.dtype is None:
        if array.dtype.kind == "O":
            raise InputError(f"{label}: found {_python_kind(array)}; expected numbers or strings")
        return array.astype(np.float32) if array.dtype == np.float64 else array
    target = numpy_dtype(spec.dtype)
    if array.size == 0 and array.dtype == np.float64:
        return array.astype(target)
    kinds = {"b": "b", "i": "biu", "u": "biu", "f": "iuf", "U": "U", "V": "iuf"}
    if array.dtype.kind == "U" and target.kind in "fV":
        array = np.asarray(_special_floats(value))
    with np.errstate(invalid="ignore"):  # an infinity
        whole = target.kind in "iu" and array.dtype.kind == "f" and bool(np.all(array % 1 == 0))
    if array.dtype.kind not in kinds[target.kind] and not whole:
        found = _python_kind(array)
        raise InputError(f"{label}: found {found}; expected {spec.dtype} values")
    if target.kind in "iu" and array.size:
        limits = np.iinfo(target)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            found = _cut(str(low if low < limits.min else high))
            raise InputError(
                f"{label}: found {found}; expected {spec.dtype}, from {limits.min} to {limits.max}"
            )
    with np.errstate(over="ignore"):
        result = array.astype(target)
    if target.kind in "fV" and np.any(
        np.isinf(result.astype(np.float64)) & np.isfinite(array.astype(np.float64))
    ):
        raise InputError(f"{label}: found a number too large for {spec.dtype}")
    return result


def _special_floats(value: Any) -> Any:
    """Undo what :func:`to_json_values` does to NaN and infinities, in nested lists."""
    if isinstance(value, list):
        return [_special_floats(item) for item in value]
    return float(value) if isinstance(value, str) and value in _SPECIAL else value


def _python_kind(array: Array) -> str:
    names = {"b": "booleans", "i": "integers", "u": "integers", "f": "numbers with a fraction"}
    names |= {"U": "strings", "O": "null, objects or numbers out of range"}
    return names.get(array.dtype.kind, str(array.dtype))


def _read_npy(path: Path, spec: TensorSpec, label: str) -> Array:
    from ..runtime.npz import read_npy, restore_dtype

    return restore_dtype(read_npy(path, f"{label}: {path}"), spec.name, [spec])


def to_json_values(array: Array) -> Any:
    """Return nested lists for JSON; NaN and infinities, which JSON lacks, become strings."""
    if array.dtype.kind == "V":
        array = array.astype("float32")
    if array.dtype.kind != "f":
        return array.tolist()
    return _finite(array.tolist())


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def check_output(file: str | None, force: bool) -> None:
    """Check, before any work, that results can be written to a file.

    Raises:
        UsageError: its suffix is neither ``.npz`` nor ``.json``, or its folder is missing.
        OutputExistsError: it exists, and ``force`` was not given.
    """
    if file is None or file == STANDARD_STREAM:
        return
    path = Path(file).expanduser()
    if path.suffix not in (".npz", ".json"):
        raise UsageError(f"-o {file}: expected a name that ends in .npz or .json, or -")
    if not path.parent.is_dir():
        raise UsageError(f"-o {file}: the folder {path.parent} does not exist")
    if path.exists() and not force:
        raise OutputExistsError(f"-o {file}: exists already", hint="pass --force to replace it")


def encode_outputs(arrays: Mapping[str, Array], suffix: str) -> bytes:
    """Return outputs as the content of an ``.npz`` or a ``.json`` file."""
    from ..runtime.npz import dump_npz

    if suffix == ".npz":
        return dump_npz(arrays)
    values = {name: to_json_values(array) for name, array in arrays.items()}
    return (json.dumps(values) + "\n").encode()


def write_atomically(path: Path, chunks: Sequence[bytes]) -> None:
    """Write a file beside its target and rename it into place.

    Args:
        path: the target; it gets the permissions that the user's umask allows.
        chunks: its content.

    Raises:
        IngotError: it cannot be written; nothing is left behind.
    """
    from ..runtime.atomic import replacing

    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.writelines(chunks)
    except OSError as error:
        raise IngotError(f"{path}: cannot be written: {error.strerror or error}") from error
