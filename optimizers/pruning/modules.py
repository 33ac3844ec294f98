"""Copies and calls of any user's module."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from ...frameworks.base import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

Inputs = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and keyword arguments of a module."""


def copy_module(module: nn.Module) -> nn.Module:
    """Return a deep copy.

    Raises:
        ModelError: it cannot be copied; the message names the part that refuses.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:
        reason, culprit = first_line(error), type(module).__name__
        for path, child in module.named_modules():
            if path and not any(True for _ in child.children()) and not _can_copy(child):
                culprit = f"its module {path!r} ({type(child).__name__})"
                break
        raise ModelError(
            f"{type(module).__name__} cannot be copied: {culprit}: {reason}",
            hint="pruning works on copies: copy.deepcopy(model) has to work (open files, locks,"
            " and tensors that are computed once are the usual reasons)",
        ) from error


def _can_copy(module: nn.Module) -> bool:
    try:
        copy.deepcopy(module)
    except Exception:
        return False
    return True


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of what a module returned, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) or hasattr(value, "__dict__"):
        yield from tensors_in(list(vars(value).values()))


def map_tensors(value: Any, change: Any) -> Any:
    """Return a value whose tensors are changed, within lists, tuples and dicts."""
    import torch

    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


@contextmanager
def plain_attention() -> Iterator[None]:
    """Switch off the fused kernels of attention, which pass by the modules inside."""
    import torch

    mha: Any = getattr(torch.backends, "mha", None)
    if mha is None:
        yield
        return
    enabled = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(enabled)
