"""Weights and training states of Keras in safetensors files, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..frameworks.base import import_framework
from ..runtime.atomic import replacing
from .inputter import Array
from .state_tree import TensorFile, read_tree, write_tree


def write_arrays(
    path: Path, arrays: Mapping[str, Array], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays to a safetensors file; complete, or not at all."""
    import_framework("safetensors", "tensorflow")
    from safetensors.numpy import save_file

    with replacing(path, sync=True) as temporary:
        save_file(dict(arrays), temporary, metadata=metadata)


class _NumpyFile(TensorFile):
    framework = "np"

    def is_tensor(self, value: Any) -> bool:
        return False

    def stored(self, tensor: Any) -> Any:
        return tensor

    def from_numpy(self, array: np.ndarray[Any, Any]) -> Any:
        return np.array(array, order="C")

    def to_numpy(self, tensor: Any) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = tensor
        return array

    def write(self, path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
        write_arrays(path, tensors, metadata)


def write_state(path: Path, tree: Any) -> None:
    """Write nested dicts, lists, tuples, scalars and arrays; complete, or not at all.

    Raises:
        ModelError: something in it is none of these.
    """
    write_tree(path, tree, _NumpyFile())


def read_state(path: Path) -> Any:
    """Read what :func:`write_state` wrote.

    Raises:
        ModelError: it is no such file, or damaged.
    """
    return read_tree(path, _NumpyFile())
