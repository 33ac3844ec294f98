"""A training state in one safetensors file: tensors, and the rest as JSON. No pickle.

The file is the same whatever the framework; what differs is how its tensors are read and written.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError

_KEY = "ingot_training"
_FORMAT = 2


class TensorFile(ABC):
    """How the tensors of a framework come into a safetensors file, and out of it.

    Attributes:
        framework: what safetensors calls it.
    """

    framework: str

    @abstractmethod
    def is_tensor(self, value: Any) -> bool:
        """Whether a value is a tensor of the framework, and no array of NumPy."""

    @abstractmethod
    def stored(self, tensor: Any) -> Any:
        """Return a tensor with memory of its own: safetensors refuses what shares it."""

    @abstractmethod
    def from_numpy(self, array: np.ndarray[Any, Any]) -> Any:
        """Return what :meth:`write` takes for an array."""

    @abstractmethod
    def to_numpy(self, tensor: Any) -> np.ndarray[Any, Any]:
        """Return the array of a tensor that was read."""

    @abstractmethod
    def write(self, path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
        """Write a file; complete, or not at all."""


def write_tree(path: Path, tree: Any, file: TensorFile) -> None:
    """Write nested dicts, lists, tuples, scalars and tensors; complete, or not at all.

    Raises:
        ModelError: something in it is none of these.
    """
    tensors: dict[str, Any] = {}
    text = json.dumps({"format": _FORMAT, "tree": _encode(tree, "", tensors, file)})
    file.write(path, tensors, {_KEY: text})


def read_tree(path: Path, file: TensorFile) -> Any:
    """Read what :func:`write_tree` wrote.

    Raises:
        ModelError: it is no such file, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=file.framework) as opened:
            text = (opened.metadata() or {}).get(_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable checkpoint: {error}") from error
    if text is None:
        raise ModelError(f"{path}: found no training state; expected a checkpoint of 'ingot train'")
    document = json.loads(text)
    if document["format"] != _FORMAT:
        raise ModelError(
            f"{path}: found a checkpoint of format {document['format']}; expected {_FORMAT}"
        )
    return _decode(document["tree"], tensors, file)


def _encode(value: Any, where: str, tensors: dict[str, Any], file: TensorFile) -> Any:
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        tensors[where] = file.from_numpy(value)
        return {"numpy": {"tensor": where}}
    if file.is_tensor(value):
        tensors[where] = file.stored(value)
        return {"tensor": where}
    if isinstance(value, list | tuple):
        items = [
            _encode(item, f"{where}/{index}", tensors, file) for index, item in enumerate(value)
        ]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        pairs = [
            [_encode(key, where, tensors, file), _encode(item, f"{where}/{key}", tensors, file)]
            for key, item in value.items()
        ]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise ModelError(
        f"the training state holds a {type(value).__name__} at {where.strip('/')!r}; expected"
        " tensors, numbers, texts, lists and dicts",
        hint="give an optimizer or scheduler of your own a state_dict of such values",
    )


def _decode(value: Any, tensors: Mapping[str, Any], file: TensorFile) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors, file) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "numpy":
        return file.to_numpy(_decode(content, tensors, file))
    if kind == "tuple":
        return tuple(_decode(content, tensors, file))
    pairs = {_decode(key, tensors, file): _decode(item, tensors, file) for key, item in content}
    return Counter(pairs) if kind == "counter" else pairs
