"""Mends the index mappings of ``split``, ``chunk`` and ``unbind`` in torch-pruning's graph.

torch-pruning 1.6.1 maps splits of dimension 1 only, and takes the parts in the order in which it
happens to meet who uses them. Autograd knows the number of each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any


def mend_splits(graph: Any) -> dict[Any, int]:
    """Set the index mappings of all parts of splits along the channels.

    Returns:
        the width of the parts of each split into equal ones, which have to stay equal.
    """
    from torch_pruning import ops

    widths: dict[Any, int] = {}
    for node in graph.module2node.values():
        if node.type in (ops.OPTYPE.SPLIT, ops.OPTYPE.UNBIND):
            sizes = _sizes(graph, node)
            if sizes is not None:
                _map_parts(node, list(pairwise(accumulate(sizes, initial=0))))
                if len(set(sizes)) == 1 and not hasattr(node.grad_fn, "_saved_split_sizes"):
                    widths[node] = sizes[0]
    return widths


def _sizes(graph: Any, node: Any) -> Sequence[int] | None:
    """Return the channels of each part; None when it is no split along the channels."""
    from torch_pruning.dependency import shape_infer

    channels = next(
        (
            count
            for given in node.inputs
            if (count := shape_infer.infer_out_channels_recursively(graph, given, [0])) is not None
        ),
        None,
    )
    if channels is None:
        return None
    function = node.grad_fn
    if not hasattr(function, "_saved_self_sym_sizes"):  # unbind: of (3, batch, heads, ...)
        parts = 1 + max((part for out in node.outputs for part in _parts(out, node)), default=0)
        return None if function._saved_dim != 0 or channels % parts else [channels // parts] * parts
    shape = function._saved_self_sym_sizes
    dim = function._saved_dim
    dim = dim - 2**64 + len(shape) if dim >= len(shape) else dim
    if not 0 < dim < len(shape) or shape[dim] != channels:
        return None
    if hasattr(function, "_saved_split_sizes"):
        return [int(size) for size in function._saved_split_sizes]
    each = int(function._saved_split_size)
    return [min(each, channels - start) for start in range(0, channels, each)]


def _parts(user: Any, node: Any) -> list[int]:
    """Return the numbers of the parts that a node uses."""
    given = getattr(user.grad_fn, "next_functions", ())
    return [number for function, number in given if function is node.grad_fn]


def _map_parts(node: Any, offsets: Sequence[tuple[int, int]]) -> None:
    from torch_pruning.dependency.index_mapping import _SplitIndexMapping

    for user in {id(out): out for out in node.outputs}.values():
        parts = _parts(user, node)
        forth = [dep for dep in node.dependencies if dep.target is user]
        back = [dep for dep in user.dependencies if dep.target is node]
        if len(parts) != len(forth) or len(parts) != len(back):
            continue
        for part, there, here in zip(parts, forth, back, strict=True):
            there.index_mapping[0] = _SplitIndexMapping(offset=offsets[part], reverse=False)
            here.index_mapping[0] = _SplitIndexMapping(offset=offsets[part], reverse=True)
