"""The forward pass of Keras."""

from __future__ import annotations

from typing import Any

import numpy as np

from .device import Device
from .forward_pass import ForwardPass


class KerasForwardPass(ForwardPass):
    """A forward pass whose defaults take NumPy arrays, and tensors of TensorFlow."""

    def to_device(self, leaf: Any, device: str | Device) -> Any:
        """Return it as it is: TensorFlow places what it computes itself."""
        return leaf

    def random_tensor(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array of values in 0..1; of an integer type, zeros and ones."""
        kind = np.dtype(getattr(dtype, "as_numpy_dtype", dtype))
        generator = np.random.default_rng()
        if kind.kind == "f":
            return generator.random(shape).astype(kind)
        return generator.integers(0, 2, shape).astype(kind)
