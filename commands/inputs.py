"""Settles the inputs of a model: what it says of them itself, and what the user says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import ModelError, SpecError, UsageError
from ..specs.hints import did_you_mean
from ..specs.tensors import TensorSpec

if TYPE_CHECKING:
    from ..frameworks import ModelSource


_INPUT = re.compile(r"(?P<name>[^=]+)=(?P<dtype>[^\[\]]+)(\[(?P<shape>[^\[\]]*)\])?")
_EXAMPLE = "such as --input x=float32[batch,3,32,32]; a name is a symbol, ? is any size"


def parse_input(text: str | TensorSpec) -> TensorSpec:
    """Read ``NAME=dtype[dims]``; a finished spec is returned as it is.

    Raises:
        UsageError: it has another form, or a dtype or dimension that no spec has.
    """
    if isinstance(text, TensorSpec):
        return text
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--input {text}: expected NAME=dtype[dims]", hint=_EXAMPLE)
    entries = [entry.strip() for entry in (match["shape"] or "").split(",")]
    entries = [] if entries == [""] else entries
    shape = [
        None if entry in ("?", "null") else int(entry) if entry.lstrip("-").isdigit() else entry
        for entry in entries
    ]
    entry = {"name": match["name"].strip(), "dtype": match["dtype"].strip(), "shape": shape}
    try:
        return TensorSpec.from_dict(entry, "--input")
    except SpecError as error:
        raise UsageError(f"--input {text}: {error.reason}", hint=error.hint or _EXAMPLE) from error


def settle_inputs(
    source: ModelSource, said: Sequence[TensorSpec], given: Mapping[str, TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Return complete inputs.

    Args:
        source: the model.
        said: what it says itself; dtype and shape may be None.
        given: what the user says, by name; it comes first. Code and TorchScript may be called by
            position, under names of the user's own.

    Raises:
        UsageError: an input is unknown, or its type and shape are.
        ModelError: an input has a dynamic rank.
    """
    names = [spec.name for spec in said]
    by_position = source.framework in ("torch", "python", "torchscript")
    unknown = [name for name in given if name not in names]
    if unknown and by_position and len(unknown) == len(given):
        required = [spec.name for spec in said if not spec.optional]
        if said and not len(required) <= len(given) <= len(said):
            raise UsageError(
                f"{source.label}: found {len(given)} --input; the model takes {', '.join(names)}",
                hint=_options(required),
            )
        return tuple(given.values())
    if unknown:
        raise UsageError(
            f"{source.label}: --input {unknown[0]}: the model has no such input;"
            f" it has {', '.join(names) or 'none'}",
            hint=did_you_mean(unknown[0], names),
        )
    settled = []
    missing = []
    for spec in said:
        own = given.get(spec.name)
        if own is not None:
            settled.append(replace(own, optional=spec.optional and not by_position))
        elif spec.dtype is not None and spec.shape is not None:
            settled.append(spec)
        elif spec.optional:
            continue
        elif spec.dtype is not None and not by_position:
            raise ModelError(
                f"{source.label}: input {spec.name!r} has a dynamic rank; a spec needs the number"
                " of its dimensions",
                hint=f"say it: --input '{spec.name}={spec.dtype}[batch,3]'",
            )
        else:
            missing.append(spec.name)
    if missing:
        raise UsageError(
            f"{source.label}: the model does not say the type and shape of {', '.join(missing)}",
            hint=_options(missing),
        )
    if not settled and by_position:
        raise UsageError(
            f"{source.label}: the model does not say which inputs it takes", hint=_options(["x"])
        )
    return tuple(settled)


def _options(names: Sequence[str]) -> str:
    options = " ".join(f"--input '{name}=float32[batch,3]'" for name in names)
    return f"give type and shape of each: {options}"


def guess_batch(
    inputs: tuple[TensorSpec, ...], given: Mapping[str, TensorSpec], by_example: bool
) -> list[tuple[TensorSpec, ...]]:
    """Return the inputs to try in order: their first dimensions as the batch, then as they are.

    Args:
        inputs: complete inputs.
        given: what the user says, which is never changed.
        by_example: sizes are those of an example that the model was traced with.
    """
    own = [spec for spec in inputs if spec.name not in given and spec.shape]
    leading = {spec.shape[0] for spec in own if spec.shape}
    if by_example:
        if len(leading) == 1 and all(spec.shape for spec in own) and own:
            return [_with_batch(inputs, given, leading.pop()), inputs]
    elif None in leading:
        return [_with_batch(inputs, given, None)]
    return [inputs]


def _with_batch(
    inputs: tuple[TensorSpec, ...], given: Mapping[str, TensorSpec], size: int | str | None
) -> tuple[TensorSpec, ...]:
    symbols = {dim for spec in inputs for dim in spec.shape or () if isinstance(dim, str)}
    leading = {spec.shape[0] for spec in inputs if spec.shape} & symbols
    known = next((name for name in ("batch", "batch_size", "N") if name in leading), None)
    name = known or ("batch" if "batch" not in symbols else "batch_size")
    return tuple(
        replace(spec, shape=(name, *spec.shape[1:]))
        if spec.name not in given and spec.shape and spec.shape[0] == size
        else spec
        for spec in inputs
    )
