"""Tensors on the command line and in files: inline values, ``.npy``, ``.npz`` and JSON."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, OutputExistsError, UsageError
from ..specs import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

STANDARD_STREAM = "-"


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
        return name, to_array(read_json(Path(value[1:]).expanduser(), label), spec, label)
    if value.endswith(".npy"):
        return name, _read_npy(Path(value).expanduser(), spec, label)
    try:
        parsed = json.loads(value)
    except ValueError:
        if spec.dtype not in (None, "string"):
            raise InputError(
                f"{label}: found {value!r}; expected a .npy file, @file.json, or {spec.dtype}"
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

    from ..runtime.golden import read_npz, restore_dtype

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


def read_json(source: Any, label: str) -> Any:
    """Parse JSON from a path or a binary stream.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        return json.loads(data)
    except OSError as error:
        raise InputError(f"{label}: {source}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{label}: not valid JSON: {error}") from error


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
        raise InputError(f"{label}: the nested lists are not of equal lengths") from error
    if spec.dtype is None:
        return array.astype(np.float32) if array.dtype == np.float64 else array
    target = numpy_dtype(spec.dtype)
    if array.size == 0 and array.dtype == np.float64:
        return array.astype(target)
    kinds = {"b": "b", "i": "biu", "u": "biu", "f": "iuf", "U": "U", "V": "iuf"}
    if array.dtype.kind == "U" and target.kind in "fV":
        array = _special_floats(array)
    whole = target.kind in "iu" and array.dtype.kind == "f" and bool(np.all(array % 1 == 0))
    if array.dtype.kind not in kinds[target.kind] and not whole:
        found = _python_kind(array)
        raise InputError(f"{label}: found {found}; expected {spec.dtype} values")
    if target.kind in "iu" and array.size:
        limits = np.iinfo(target)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise InputError(
                f"{label}: found {low if low < limits.min else high}; expected {spec.dtype},"
                f" from {limits.min} to {limits.max}"
            )
    with np.errstate(over="ignore"):
        result = array.astype(target)
    if target.kind == "f" and np.any(np.isinf(result) & np.isfinite(array.astype(np.float64))):
        raise InputError(f"{label}: found a number too large for {spec.dtype}")
    return result


def _special_floats(array: Array) -> Array:
    import numpy as np

    if all(str(item) in ("NaN", "Infinity", "-Infinity") for item in array.flat):
        return array.astype(np.float64)
    return array


def _python_kind(array: Array) -> str:
    names = {"b": "booleans", "i": "integers", "u": "integers", "f": "numbers with a fraction"}
    names |= {"U": "strings", "O": "null, objects or numbers out of range"}
    return names.get(array.dtype.kind, str(array.dtype))


def _read_npy(path: Path, spec: TensorSpec, label: str) -> Array:
    import numpy as np

    from ..runtime.golden import restore_dtype

    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{label}: {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{label}: {path}: not a readable .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{label}: {path}: found an .npz archive; expected a .npy file")
    return restore_dtype(array, spec.name, [spec])


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
    from ..runtime.golden import dump_npz

    if suffix == ".npz":
        return dump_npz(arrays)
    values = {name: to_json_values(array) for name, array in arrays.items()}
    return (json.dumps(values) + "\n").encode()


def write_atomically(path: Path, chunks: Sequence[bytes]) -> None:
    """Write a file beside its target and rename it into place.

    Raises:
        UsageError: it cannot be written; nothing is left behind.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.writelines(chunks)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)
