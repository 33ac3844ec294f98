"""What a model computes and holds, by layer: the figures, and the rule that they follow.

What is counted follows the published profiler (deeplite-profiler, whose first versions count as
ptflops does), so that its figures can be compared:

- ``matrix_macs``: the multiply-accumulates of convolutions, matrix products, attention and
  recurrences, wherever they are called;
- ``macs``: these, and the work of the layers between them: one operation for each element that a
  bias is added to, two for each element of a normalization (one without weights), one for each
  element that an activation or an upsampling layer returns, one for each element that a pool reads;
- the memory footprint: parameters, the input, and what every layer returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class LayerProfile:
    """One layer.

    Attributes:
        name: in its model.
        kind: its type (``Conv2d``, ``MatMul``).
        output_shape: of its (last) call; None when it was not called or does not tell.
        parameters: how many it has itself, not in layers inside of it.
        size_bytes: of these.
        macs: operations, over all its calls.
        matrix_macs: of these, the multiply-accumulates of matrix products and convolutions.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    parameters: int
    size_bytes: int
    macs: int
    matrix_macs: int


@dataclass(frozen=True)
class Complexity:
    """What a model computes and holds; None is what cannot be told.

    Attributes:
        parameters: how many numbers it has learned.
        size_bytes: of these, each in its own width; of the file where parameters cannot be told.
        macs: operations, see the module.
        matrix_macs: multiply-accumulates of convolutions, matrix products, attention, recurrences.
        memory_bytes: parameters, the input, and what every layer returns.
        file_bytes: of the file of the model or of its weights.
        layers: in the order in which they run.
        notes: what was not counted, and why.
    """

    parameters: int | None = None
    size_bytes: int | None = None
    macs: int | None = None
    matrix_macs: int | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None
    layers: tuple[LayerProfile, ...] = ()
    notes: tuple[str, ...] = ()


def input_bytes(feeds: Arrays) -> int:
    """Return the bytes of inputs; of strings none, whose storage is the framework's."""
    return sum(array.nbytes for array in feeds.values() if array.dtype.kind not in "USO")


def total(
    layers: Sequence[LayerProfile], memory_bytes: int | None, notes: Sequence[str] = ()
) -> Complexity:
    """Sum up layers that hold all parameters and operations of a model."""
    return Complexity(
        parameters=sum(layer.parameters for layer in layers),
        size_bytes=sum(layer.size_bytes for layer in layers),
        macs=sum(layer.macs for layer in layers),
        matrix_macs=sum(layer.matrix_macs for layer in layers),
        memory_bytes=memory_bytes,
        layers=tuple(layers),
        notes=tuple(notes),
    )
