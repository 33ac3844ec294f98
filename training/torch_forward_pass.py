"""The forward pass of PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .device import Device, as_device
from .forward_pass import ForwardPass

if TYPE_CHECKING:
    import torch


class TorchForwardPass(ForwardPass):
    """A forward pass whose defaults take PyTorch tensors; NumPy arrays become tensors."""

    def to_device(self, leaf: Any, device: str | Device) -> Any:
        return move(leaf, device)

    def random_tensor(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return one of values in 0..1; of an integer type, zeros and ones."""
        import torch

        kind = dtype if isinstance(dtype, torch.dtype) else torch_dtype(dtype)
        if kind.is_floating_point or kind.is_complex:
            return torch.rand(shape, dtype=kind)
        return torch.randint(0, 2, shape, dtype=kind)


def torch_dtype(dtype: Any) -> torch.dtype:
    """Return PyTorch's type for one of NumPy."""
    import numpy as np
    import torch

    return torch.from_numpy(np.zeros(0, dtype)).dtype


def torch_device_of(device: Any) -> torch.device:
    """Return PyTorch's device for ours; one of PyTorch is returned as it is."""
    import torch

    if isinstance(device, torch.device):
        return device
    return torch.device("cuda" if as_device(device) is Device.GPU else "cpu")


def move(value: Any, device: Any) -> Any:
    """Return tensors, NumPy arrays, and containers of them on a device, as tensors."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        return value.to(torch_device_of(device), non_blocking=True)
    if isinstance(value, dict):
        return {name: move(child, device) for name, child in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(move(child, device) for child in value)
    return value
