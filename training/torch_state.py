"""Weights and training states of PyTorch in safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.atomic import replacing
from .state_tree import TensorFile, read_tree, write_tree


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors that share no memory to a safetensors file; complete, or not at all."""
    from safetensors.torch import save_file

    with replacing(path, sync=True) as temporary:
        save_file(dict(tensors), temporary, metadata=metadata)


def write_network(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a network, whose tensors may share memory, lie elsewhere, or be strided.

    Args:
        path: a safetensors file.
        state: as ``state_dict`` returns it.
    """
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    write_tensors(path, tensors)


class _TorchFile(TensorFile):
    framework = "pt"

    def is_tensor(self, value: Any) -> bool:
        import torch

        return isinstance(value, torch.Tensor)

    def stored(self, tensor: Any) -> Any:
        return tensor.detach().cpu().clone().contiguous()

    def from_numpy(self, array: np.ndarray[Any, Any]) -> Any:
        import torch

        return torch.from_numpy(array.copy()).contiguous()

    def to_numpy(self, tensor: Any) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = tensor.numpy()
        return array

    def write(self, path: Path, tensors: Mapping[str, Any], metadata: dict[str, str]) -> None:
        write_tensors(path, tensors, metadata)


def write_state(path: Path, tree: Any) -> None:
    """Write nested dicts, lists, tuples, scalars and tensors; complete, or not at all.

    Raises:
        ModelError: something in it is none of these.
    """
    write_tree(path, tree, _TorchFile())


def read_state(path: Path) -> Any:
    """Read what :func:`write_state` wrote.

    Raises:
        ModelError: it is no such file, or damaged.
    """
    return read_tree(path, _TorchFile())
