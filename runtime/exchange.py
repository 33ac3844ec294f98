"""What goes from one process to another as JSON values: model sources, tensor specs, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import IngotError, UsageError
from ..frameworks.base import ModelSource
from ..specs.tensors import TensorSpec


def pack_source(source: ModelSource) -> dict[str, Any]:
    """Return a source as JSON values, with absolute paths.

    Raises:
        UsageError: it is a live module, which cannot be handed to another process.
    """
    if source.native is not None:
        raise UsageError(
            f"{source.label}: a live module cannot be handed to another process",
            hint="write a spec that names its code: ingot init",
        )
    packed: dict[str, Any] = {}
    for field in fields(source):
        value = getattr(source, field.name)
        if field.name in ("inputs", "outputs"):
            value = None if value is None else [spec.to_dict() for spec in value]
        elif field.name == "custom_ops":
            value = [str(path.absolute()) for path in value]
        elif field.name == "data_files":
            value = {name: str(path.absolute()) for name, path in value.items()}
        elif isinstance(value, Path):
            value = str(value.absolute())
        elif isinstance(value, Mapping):
            value = dict(value)
        packed[field.name] = value
    return packed


def unpack_source(packed: dict[str, Any]) -> ModelSource:
    """Rebuild what :func:`pack_source` took apart."""
    packed = dict(packed)
    for name in ("inputs", "outputs"):
        if packed[name] is not None:
            packed[name] = unpack_specs(packed[name])
    for name in ("path", "code_root", "data_root", "weights"):
        if packed[name] is not None:
            packed[name] = Path(packed[name])
    packed["custom_ops"] = tuple(Path(path) for path in packed["custom_ops"])
    packed["data_files"] = {name: Path(path) for name, path in packed["data_files"].items()}
    packed["init_op_names"] = tuple(packed["init_op_names"])
    return ModelSource(**packed)


def unpack_specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Rebuild specs; unlike those of a file, they may lack dtype and shape (a bare TorchScript)."""
    return tuple(
        TensorSpec(
            entry["name"],
            entry["dtype"],
            None if entry["shape"] is None else tuple(entry["shape"]),
            entry.get("optional", False),
        )
        for entry in entries
    )


def pack_error(error: IngotError) -> dict[str, Any]:
    """Return an error as JSON values."""
    return {"class": type(error).__name__, "message": error.message, "hint": error.hint}


def unpack_error(packed: Mapping[str, Any]) -> IngotError:
    """Build an error of the class that was raised in the other process, with its message."""
    kind = getattr(errors, packed["class"], IngotError)
    error: IngotError = IngotError.__new__(kind)
    IngotError.__init__(error, packed["message"], hint=packed["hint"])
    return error
