"""NumPy arrays as PyTorch tensors and back, without a copy where memory can be shared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """Converts the inputs and outputs of one model, and calls it.

    Inputs are views of the caller's arrays. The first call is watched: before an operator writes to
    an input, the call is given up and made again with a copy of that input, as are all later calls.
    A write that comes only later (it depends on the data) is noticed afterwards, and said.
    """

    def __init__(self, device: torch.device, label: str, native: Any) -> None:
        self._torch = import_torch()
        self._tensor = self._torch.Tensor
        self._from_numpy = self._torch.from_numpy
        self._no_grad = self._torch.no_grad
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._label = label
        self._written: set[str] = set()
        self._watched = not self._on_cpu
        self._state: frozenset[int] = frozenset()
        if isinstance(native, self._torch.nn.Module):
            tensors = [*native.parameters(), *native.buffers()]
            self._state = frozenset(_address(tensor) for tensor in tensors)

    def call(
        self, arrays: Mapping[str, Any], names: Iterable[str], invoke: Callable[[Any], Any]
    ) -> Any:
        """Call a model without gradients.

        Args:
            arrays: arrays by input name.
            names: the inputs to pass, in order.
            invoke: gets tensors by name, in that order.
        """
        tensors = {name: self.to_tensor(name, arrays[name]) for name in names}
        if not self._watched:
            return self._watched_call(arrays, tensors, invoke)
        with self._no_grad():
            returned = invoke(tensors)
        self._note_writes(tensors)
        return returned

    def _watched_call(
        self, arrays: Mapping[str, Any], tensors: dict[str, Any], invoke: Callable[[Any], Any]
    ) -> Any:
        from .torch_writes import watch_writes

        while True:
            watch = watch_writes(
                {
                    _address(tensor): name
                    for name, tensor in tensors.items()
                    if isinstance(tensor, self._tensor) and name not in self._written
                }
            )
            try:
                with self._no_grad(), watch:
                    returned = invoke(tensors)
            except Exception:
                if watch.written is None:
                    raise
                self._written.add(watch.written)
                tensors[watch.written] = self.to_tensor(watch.written, arrays[watch.written])
                continue
            self._watched = True
            return returned

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

    def _note_writes(self, tensors: Mapping[str, Any]) -> None:
        kind = self._tensor
        for name, tensor in tensors.items():
            if type(tensor) is kind and tensor._version and name not in self._written:
                self._written.add(name)
                logging.getLogger("ingot").warning(
                    "%s: the model has written to its input %r in place; the array passed in was"
                    " changed, and is copied from the next call on",
                    self._label,
                    name,
                )

    def to_arrays(
        self,
        named: Mapping[str, Any],
        outputs: Sequence[str] | None,
        arrays: Mapping[str, np.ndarray[Any, Any]],
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return outputs as arrays that share the tensors' memory, but neither weights nor inputs.

        Args:
            named: outputs by name, as :meth:`to_array` takes them.
            outputs: the outputs wanted; None means all.
            arrays: what the model was called with.
        """
        wanted = named if outputs is None else [name for name in outputs if name in named]
        result = {name: self.to_array(name, named[name]) for name in wanted}
        for name, array in result.items():
            shared = any(np.may_share_memory(array, given) for given in arrays.values())
            if shared or self._is_state(named[name]):
                result[name] = array.copy()
        return result

    def _is_state(self, value: Any) -> bool:
        """Whether a tensor is a parameter or a buffer of the model, or a view of one."""
        if not self._state or not isinstance(value, self._tensor) or not value.is_cpu:
            return False
        return _address(value) in self._state

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
            shapes = {tuple(item.shape) for item in value}
            if len(shapes) > 1:
                raise ModelError(
                    f"{self._label}: output {name!r} is a {type(value).__name__} of {len(value)}"
                    " tensors of different shapes; expected one tensor",
                    hint="return a flat tuple in the order of the spec, or a dict by name",
                )
            return np.stack([self.to_array(name, item) for item in value])
        array = np.asarray(value)
        if array.dtype.kind == "O":
            raise ModelError(
                f"{self._label}: output {name!r} is a {type(value).__name__};"
                " expected a tensor, a number, or (lists of) strings"
            )
        return array


def _address(tensor: Any) -> int:
    """The address of the memory that a tensor is a view of; 0 for those that have none."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except (NotImplementedError, RuntimeError):  # sparse tensors have no storage
        return 0
