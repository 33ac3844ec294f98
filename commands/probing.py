"""Finds the outputs of a model by running it on seeded inputs of two sizes, in fresh processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ModelError
from ..specs.tensors import Dimension, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    from ..frameworks import ModelSource
    from ..runtime.random_inputs import Key, Sizes

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Probe:
    """What running a model told.

    Attributes:
        arrays: the inputs of the first run; optional ones are left out.
        results: what it returned for them.
        outputs: the outputs, with the symbols that their dimensions follow.
        sizes: sizes of the first run.
        partial: why it ran with one size only; None when it ran with two.
    """

    arrays: Mapping[str, Array]
    results: Mapping[str, Array]
    outputs: tuple[TensorSpec, ...]
    sizes: Sizes
    partial: str | None = None


def probe(source: ModelSource, declared: Sequence[TensorSpec], seed: int) -> Probe:
    """Run a model at two sizes of every symbol, and tell which one a dimension follows.

    Args:
        source: the model, with complete inputs.
        declared: the outputs as the model says them; empty when it does not.
        seed: of the inputs.

    Raises:
        ModelError: it does not run on any sizes tried, or an output cannot be said in a spec.
    """
    inputs = source.inputs or ()
    source = replace(source, outputs=source.outputs if declared else ())
    failure: ModelError | None = None
    partial: Probe | None = None
    for first, second in _plans(inputs):
        try:
            arrays, before = _run(source, first, seed)
        except ModelError as error:
            failure = failure or error
            continue
        reason = None
        try:
            after = before if first == second else _run(source, second, seed)[1]
        except ModelError as error:
            reason = error.message
            after = before
        outputs = tuple(
            _output(source, name, before[name], after.get(name), declared, first, second)
            for name in before
        )
        found = Probe(arrays, before, outputs, first, reason)
        same = {key: size for key, size in first.items() if second[key] == size}
        if same:
            found = replace(found, partial=f"it runs with {_describe(same)} only")
        if found.partial is None:
            return found
        partial = partial or found
        failure = failure or ModelError(found.partial)
    if partial is not None:
        return partial
    assert failure is not None
    raise failure


def _plans(inputs: Sequence[TensorSpec]) -> Iterator[tuple[dict[Key, int], dict[Key, int]]]:
    """Yield sizes of two runs, the likeliest first; some models take only some sizes."""
    from ..runtime.random_inputs import keyed_dimensions

    keys: list[Key] = []
    leading: set[Key] = set()
    is_image = False
    for spec in inputs:
        if spec.optional:
            continue
        named = enumerate(keyed_dimensions(spec))
        free = [(axis, key) for axis, (dim, key) in named if type(dim) is not int]
        keys += [key for _, key in free if key not in keys]
        leading |= {key for axis, key in free if axis == 0}
        is_image |= len(spec.shape or ()) >= 4 and any(axis > 0 for axis, _ in free)
    batch = [key for key in keys if key in leading]
    others = [key for key in keys if key not in leading]
    count = range(len(others))
    small = ([5 + 2 * i for i in count], [6 + 2 * i for i in count])
    image = ([64 + 32 * i for i in count], [96 + 32 * i for i in count])
    square = ([64 for _ in count], [96 for _ in count])
    same = ([8 for _ in count], [12 for _ in count])
    plans = [image, square, small, same] if is_image else [small, image, same, square]
    for first, second in plans if others else [([], [])]:
        yield (
            {**dict.fromkeys(batch, 2), **dict(zip(others, first, strict=True))},
            {**dict.fromkeys(batch, 3), **dict(zip(others, second, strict=True))},
        )
    if batch:
        # Many a file says that its batch is dynamic, and holds a reshape to batch 1.
        for first, second in plans if others else [([], [])]:
            ones = dict.fromkeys(batch, 1)
            yield (
                {**ones, **dict(zip(others, first, strict=True))},
                {**ones, **dict(zip(others, second, strict=True))},
            )


def _run(
    source: ModelSource, sizes: Sizes, seed: int
) -> tuple[dict[str, Array], Mapping[str, Array]]:
    from ..runtime.child import run_source
    from ..runtime.random_inputs import seeded_inputs

    arrays = seeded_inputs(source.inputs or (), sizes, seed)
    return arrays, run_source(source, arrays).arrays


def _output(
    source: ModelSource,
    name: str,
    before: Array,
    after: Array | None,
    declared: Sequence[TensorSpec],
    first: Sizes,
    second: Sizes,
) -> TensorSpec:
    import numpy as np

    from ..specs.dtypes import dtype_name

    said = next((spec for spec in declared if spec.name == name), None)
    found = "bfloat16" if before.dtype == np.dtype("V2") else dtype_name(before.dtype)
    dtype = said.dtype if said is not None and said.dtype is not None else found
    if dtype is None:
        raise InputError(
            f"{source.label}: output {name!r} is {before.dtype}, which no tensor spec can say"
        )
    if after is None or after.ndim != before.ndim:
        raise InputError(
            f"{source.label}: output {name!r} has a dynamic rank: {before.ndim} dimensions in one"
            f" run, {'none' if after is None else after.ndim} in another; a spec needs one number"
        )
    shape: list[Dimension] = []
    for axis, (one, other) in enumerate(zip(before.shape, after.shape, strict=True)):
        fits = said is not None and said.shape is not None and len(said.shape) == before.ndim
        dim = said.shape[axis] if fits and said is not None and said.shape is not None else one
        if one != other:
            followed = [key for key in first if (first[key], second[key]) == (one, other)]
            # Two symbols of one size cannot be told apart: only the model itself may say which.
            known = followed[0] if len(followed) == 1 else dim
            dim = known if isinstance(known, str) and (known in followed or not followed) else None
        elif isinstance(dim, int):
            dim = one
        shape.append(None if dim == 0 else dim)
    return TensorSpec(name, dtype, tuple(shape))


def _describe(sizes: Sizes) -> str:
    return ", ".join(
        f"{key if isinstance(key, str) else f'dimension {key}'} {size}"
        for key, size in sizes.items()
    )
