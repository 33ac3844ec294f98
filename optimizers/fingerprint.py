"""JSON values that tell Python objects apart, so that a search of them can be found again."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

_DEEPEST = 6


def describe(value: Any) -> Any:
    """Return what an object is: its values, and the code of its class, but no address in memory.

    What lies deeper than a few levels, or was described before, counts by its type only. Two
    objects that are described differently may still do the same, as when a class was renamed.
    """
    return _Describer().describe(value, 0)


class _Describer:
    """Walks through an object; it keeps what it saw, so that no address is used twice."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}

    def describe(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, type):
            return [_name(value), _code(value)]
        if depth > _DEEPEST or id(value) in self._seen:
            return _name(type(value))
        self._seen[id(value)] = value
        if isinstance(value, Mapping):
            return {str(name): self.describe(child, depth + 1) for name, child in value.items()}
        if isinstance(value, list | tuple):
            return [self.describe(child, depth + 1) for child in value]
        if isinstance(value, set | frozenset):
            return sorted((self.describe(child, depth + 1) for child in value), key=str)
        if isinstance(value, partial):
            return self.describe([value.func, value.args, value.keywords], depth)
        if inspect.ismethod(value):
            return self.describe([value.__func__, value.__self__], depth)
        if inspect.isfunction(value):
            return self._function(value, depth)
        array = _array(value)
        if array is not None:
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            return [str(array.dtype), list(array.shape), digest]
        return self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind.__module__.partition(".")[0] in sys.stdlib_module_names:
            text = repr(value)  # a logger, a lock, a date: what they hold may be anything
            return [_name(kind), None if " at 0x" in text else text]
        if hasattr(value, "state_dict") and hasattr(value, "named_modules"):
            state = dict(value.state_dict())
            return [_name(kind), _code(kind), repr(value), self.describe(state, depth)]
        held = dict(vars(value)) if hasattr(value, "__dict__") else {}
        return [_name(kind), _code(kind), self.describe(held, depth + 1)]

    def _function(self, value: Any, depth: int) -> Any:
        held: list[Any] = [value.__defaults__, value.__kwdefaults__]
        for cell in value.__closure__ or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:  # a name that was not given a value yet
                held.append(None)
        return [_name(value), _code(value), self.describe(held, depth + 1)]


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _code(value: Any) -> str | None:
    """Return the hash of a function's source, or of a class's and of those that it extends."""
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
