"""NumPy arrays as PyTorch tensors and back, without a copy where memory can be shared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from .base import LoadOptions, import_framework, parse_device, warn_no_gpu

if TYPE_CHECKING:
    import torch


def import_torch(options: LoadOptions | None = None) -> Any:
    """Import PyTorch, and set its number of threads.

    Raises:
        MissingDependencyError: it is not installed.
    """
    torch = import_framework("torch", "torch")
    if options is not None and options.threads is not None:
        torch.set_num_threads(options.threads)
    return torch


def torch_device(device: str) -> torch.device:
    """Return the device to use; the CPU, with a warning, where the GPU asked for is not there."""
    torch = import_torch()
    kind, index = parse_device(device)
    if kind == "gpu":
        if index < torch.cuda.device_count():
            return torch.device("cuda", index)
        warn_no_gpu(device, "PyTorch")
    return torch.device("cpu")


def load_custom_ops(paths: Sequence[Path], label: str) -> None:
    """Load shared libraries that register PyTorch operators, each one once per process.

    Raises:
        ModelError: a library cannot be loaded.
    """
    from .custom_ops import load_once

    torch = import_torch()
    load_once(paths, "torch", torch.ops.load_library, label)


class TensorConverter:
    """Converts the inputs and outputs of one model.

    A model that writes to an input in place would write to the caller's array. The first time this
    is seen it is said in a warning, and from then on that input is copied.
    """

    def __init__(self, device: torch.device, label: str) -> None:
        self._torch = import_torch()
        self._tensor = self._torch.Tensor
        self._from_numpy = self._torch.from_numpy
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._label = label
        self._written: set[str] = set()

    def to_tensor(self, name: str, array: np.ndarray[Any, Any]) -> Any:
        """Return a tensor that shares the array's memory; strings become (nested) lists."""
        kind = array.dtype.kind
        if kind in "UO":
            return array.tolist()
        if not array.flags.writeable or name in self._written:
            array = array.copy()
        elif not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if kind == "V" and array.dtype.name == "bfloat16":
            tensor = self._torch.from_numpy(array.view(np.uint16)).view(self._torch.bfloat16)
        else:
            try:
                tensor = self._from_numpy(array)
            except ValueError:  # negative strides
                tensor = self._torch.from_numpy(array.copy())
        return tensor if self._on_cpu else tensor.to(self._device)

    def note_writes(self, tensors: Mapping[str, Any]) -> None:
        """Warn about each input that the model has written to."""
        kind = self._tensor
        for name, tensor in tensors.items():
            if type(tensor) is kind and tensor._version and name not in self._written:
                self._written.add(name)
                logging.getLogger("ingot").warning(
                    "%s: the model writes to its input %r in place; the array passed in was"
                    " changed, and is copied from the next call on",
                    self._label,
                    name,
                )

    def to_array(self, name: str, value: Any) -> np.ndarray[Any, Any]:
        """Return an output as an array that shares the tensor's memory.

        Args:
            name: the output, for messages.
            value: a tensor, a string, a number, an array or a (nested) list of these.

        Raises:
            ModelError: it is something else.
        """
        torch = self._torch
        if type(value) is torch.Tensor or isinstance(value, torch.Tensor):
            if value.requires_grad:
                value = value.detach()
            if not value.is_cpu:
                value = value.cpu()
            if value.dtype is torch.bfloat16:
                from ..specs.dtypes import numpy_dtype

                return value.view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))
            if value.layout is not torch.strided or value.is_quantized:
                raise ModelError(
                    f"{self._label}: output {name!r} is a {value.layout} tensor;"
                    " expected a dense one"
                )
            return value.resolve_conj().resolve_neg().numpy()
        if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
            return np.stack([self.to_array(name, item) for item in value])
        array = np.asarray(value)
        if array.dtype.kind == "O":
            raise ModelError(
                f"{self._label}: output {name!r} is a {type(value).__name__};"
                " expected a tensor, a number, or (lists of) strings"
            )
        return array
