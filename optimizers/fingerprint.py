"""JSON values that tell Python objects apart, so that a search of them can be found again."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

_DEEPEST = 6


def describe(value: Any, depth: int = 0) -> Any:
    """Return what an object is: its values, and the code of its class, but no address in memory.

    What lies deeper than a few levels counts by its type only. Two objects that are described
    differently may still do the same, as when a class was renamed.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if depth > _DEEPEST:
        return _name(type(value))
    if isinstance(value, Mapping):
        return {str(name): describe(child, depth + 1) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [describe(child, depth + 1) for child in value]
    if isinstance(value, set | frozenset):
        return sorted((describe(child, depth + 1) for child in value), key=str)
    if isinstance(value, type):
        return [_name(value), _code(value)]
    if isinstance(value, partial):
        return describe([value.func, value.args, value.keywords], depth + 1)
    if inspect.ismethod(value):
        return describe([value.__func__, value.__self__], depth + 1)
    if inspect.isfunction(value):
        return _function(value, depth)
    array = _array(value)
    if array is not None:
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return [str(array.dtype), list(array.shape), digest]
    if hasattr(value, "state_dict") and hasattr(value, "named_modules"):
        return [describe(type(value)), repr(value), describe(value.state_dict(), depth + 1)]
    held = vars(value) if hasattr(value, "__dict__") else {}
    return [describe(type(value)), describe(held, depth + 1)]


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _code(value: Any) -> str | None:
    """Return the hash of a class's or function's source, of the classes that it extends, too."""
    texts = []
    for item in value.__mro__ if isinstance(value, type) else (value,):
        if (item.__module__ or "").partition(".")[0] in ("builtins", "torch", "abc"):
            continue
        try:
            texts.append(inspect.getsource(item))
        except (OSError, TypeError):
            code = getattr(item, "__code__", None)
            texts.append(_name(item) if code is None else code.co_code.hex())
    return hashlib.sha256("\n".join(texts).encode()).hexdigest() if texts else None


def _function(value: Any, depth: int) -> Any:
    cells = []
    for cell in value.__closure__ or ():
        try:
            cells.append(describe(cell.cell_contents, depth + 1))
        except ValueError:  # a name that was not given a value yet
            cells.append(None)
    defaults = describe([value.__defaults__, value.__kwdefaults__], depth + 1)
    return [_name(value), _code(value), defaults, cells]


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(value, np.ndarray):
        return None if value.dtype.hasobject else value
    if not (hasattr(value, "detach") and hasattr(value, "numpy")):
        return None
    tensor = value.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    found: np.ndarray[Any, Any] = tensor.numpy()
    return found
