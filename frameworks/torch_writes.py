"""Watches for PyTorch operators that write to a model's inputs, before they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any


class InputWrittenError(Exception):
    """An operator was about to write to an input."""


def watch_writes(inputs: Mapping[int, str]) -> Any:
    """Return a context in which an operator that would write to an input raises instead.

    Args:
        inputs: input name by address of its memory.

    Returns:
        a context whose attribute ``written`` is the input that would have been written to, or None.
        TorchScript turns the exception into one of its own, so this tells.
    """
    return _watch_class()(inputs)


@cache
def _watch_class() -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class WriteWatch(TorchDispatchMode):
        def __init__(self, inputs: Mapping[int, str]) -> None:
            super().__init__()
            self._inputs = inputs
            self.written: str | None = None

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func._schema.is_mutable:
                for value in _written_values(func._schema, args, kwargs):
                    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                        name = self._inputs.get(value.untyped_storage().data_ptr())
                        if name is not None:
                            self.written = name
                            raise InputWrittenError(name)
            return func(*args, **kwargs)

    return WriteWatch


def _written_values(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from value if isinstance(value, list | tuple) else [value]
