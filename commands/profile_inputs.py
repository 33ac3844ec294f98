"""Inputs for ``profile``: the same sizes for both models of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import SpecError, UsageError
from ..specs import TensorSpec
from .models import NamedModel

if TYPE_CHECKING:
    import numpy as np

    from ..frameworks import ModelSource

    Arrays = Mapping[str, np.ndarray[Any, Any]]

Specs = tuple[TensorSpec, ...]


def profile_inputs(
    sides: Sequence[NamedModel], batch_size: int, seed: int
) -> list[tuple[Specs, Arrays, Arrays]]:
    """Return for each model what it takes, inputs of one sample, and inputs to time.

    Raises:
        UsageError: two models take different inputs, or one does not say what it takes, or takes
            another batch.
        SpecError: a spec of PyTorch code names no inputs.
    """
    said = [_said(side) for side in sides]
    if len(sides) == 2:
        said = [_filled(side, sides, said, index) for index, side in enumerate(said)]
        _require_same(sides, said)
    made: list[tuple[Specs, Arrays, Arrays]] = []
    for side, specs in zip(sides, said, strict=True):
        if made:
            specs = _sized(specs, made[0])
        if not all(_is_told(spec) for spec in specs):
            raise UsageError(
                f"{side.source.label}: does not say the types and shapes of its inputs",
                hint="write a spec for it: ingot init MODEL --input NAME=TYPE[DIMS]",
            )
        for spec in specs:
            fixed = (spec.shape or (None,))[0]
            if batch_size != 1 and isinstance(fixed, int) and fixed != batch_size:
                raise UsageError(
                    f"{side.source.label}: the first dimension of its input {spec.name!r} is"
                    f" {fixed}; expected --batch-size {fixed}, or none"
                )
        single, timed = (_arrays(side, specs, batch, seed) for batch in (1, batch_size))
        made.append((specs, single, timed))
    return made


def _said(side: NamedModel) -> Specs:
    from ..runtime.child import describe_source

    if side.spec is not None and side.spec.inputs is None and side.source.framework == "torch":
        raise SpecError(
            f"{side.source.label}: the key 'inputs' is missing; expected the tensors that the"
            " network takes",
            hint="inputs: [{name: image, dtype: float32, shape: [batch, 3, 32, 32]}]",
        )
    found = side.source.inputs
    if found is None:
        found = tuple(describe_source(side.source).inputs)
    return tuple(spec for spec in found if not spec.optional)


def _is_told(spec: TensorSpec) -> bool:
    return spec.dtype is not None and spec.shape is not None


def _filled(specs: Specs, sides: Sequence[NamedModel], said: Sequence[Specs], index: int) -> Specs:
    """Take from the other model what this one does not say: type and shape, or a free size."""
    others = said[1 - index]
    if len(specs) != len(others):
        _refuse(sides, said)
    by_name = {spec.name: spec for spec in others}
    if {spec.name for spec in specs} != set(by_name):
        by_name = {spec.name: other for spec, other in zip(specs, others, strict=True)}
    filled = []
    for spec in specs:
        other = by_name[spec.name]
        if not _is_told(spec):
            spec = replace(other, name=spec.name)
        elif len(spec.shape or ()) == len(other.shape or ()):
            pairs = zip(spec.shape or (), other.shape or (), strict=True)
            shape = [b if isinstance(b, int) and not isinstance(a, int) else a for a, b in pairs]
            spec = replace(spec, shape=tuple(shape))
        filled.append(spec)
    return tuple(filled)


def _sized(specs: Specs, first: tuple[Specs, Arrays, Arrays]) -> Specs:
    """Give the free sizes, but that of the batch, those that the first model was given."""
    arrays = first[1]
    if {spec.name for spec in specs} != set(arrays):
        arrays = {
            spec.name: arrays[other.name] for spec, other in zip(specs, first[0], strict=True)
        }
    sized = []
    for spec in specs:
        shape, sizes = spec.shape or (), arrays[spec.name].shape
        pairs = list(zip(shape, sizes, strict=False))
        # Of images of the other layout the axes do not fit.
        if all(dim == size for dim, size in pairs[1:] if isinstance(dim, int)):
            known = [dim if isinstance(dim, int) else size for dim, size in pairs[1:]]
            spec = replace(spec, shape=(*shape[:1], *known))
        sized.append(spec)
    return tuple(sized)


def _require_same(sides: Sequence[NamedModel], said: Sequence[Specs]) -> None:
    """Check that both models take the same inputs, of which images may be NCHW or NHWC."""
    first, second = said
    names = {spec.name: spec for spec in second}
    pairs = list(zip(first, second, strict=True))
    if {spec.name for spec in first} == set(names):
        pairs = [(spec, names[spec.name]) for spec in first]
    for one, two in pairs:
        sizes = [sorted(map(str, spec.shape or ())) for spec in (one, two)]
        fixed = all(isinstance(dim, int) for spec in (one, two) for dim in (spec.shape or ())[1:])
        if len(sizes[0]) != len(sizes[1]) or _kind(one) != _kind(two):
            _refuse(sides, said)
        tails = [sorted(dim for dim in (s.shape or ())[1:] if type(dim) is int) for s in (one, two)]
        if fixed and tails[0] != tails[1]:
            _refuse(sides, said)


def _kind(spec: TensorSpec) -> str:
    """Return what kind of numbers it has: an artifact may take others of the same kind."""
    name = (spec.dtype or "").rstrip("0123456789")
    return {"bfloat": "float", "uint": "int"}.get(name, name)


def _refuse(sides: Sequence[NamedModel], said: Sequence[Specs]) -> None:
    texts = [
        ", ".join(f"{it.name}: {it.describe()}" for it in specs) or "nothing" for specs in said
    ]
    labels = [side.source.label for side in sides]
    raise UsageError(
        f"{labels[0]} takes {texts[0]}; {labels[1]} takes {texts[1]}; expected the same inputs"
    )


def _arrays(side: NamedModel, specs: Specs, batch: int, seed: int) -> Arrays:
    """Return golden inputs, repeated or cut to the batch, where they fit; else random ones."""
    import numpy as np

    from ..exporters.variants import shapes_of
    from ..runtime.random_inputs import seeded_inputs

    rows = {}
    for spec in specs:
        array, shape = side.golden.get(spec.name), spec.shape or ()
        if array is None or array.ndim != len(shape) or (array.ndim and not len(array)):
            break
        if shape:
            size = shape[0] if isinstance(shape[0], int) else batch
            array = np.take(array, range(size), axis=0, mode="wrap")
        if any(
            isinstance(dim, int) and dim != n for dim, n in zip(shape, array.shape, strict=True)
        ):
            break
        rows[spec.name] = array
    if rows and len(rows) == len(specs):
        return rows
    shapes = shapes_of(specs, (), side.source.framework, side.golden, seed)
    return seeded_inputs(shapes.inputs, shapes.sizes(batch, None), seed)


def completed(side: NamedModel, specs: Specs) -> ModelSource:
    """Return the source with the inputs that a bare file does not say, and the spec's network."""
    source = side.source
    if source.framework in ("torchscript", "pt2") and source.inputs is None:
        return replace(source, inputs=specs)
    section = None if side.spec is None else side.spec.training
    network = None if section is None else section.network
    if network is None or source.framework != "torch":
        return source
    if network.is_entrypoint:
        return replace(source, entrypoint=network.name, entrypoint_kwargs=network.kwargs)
    kwargs = dict(network.kwargs)
    data = kwargs.pop("dataset_name", kwargs.pop("dataset", None))
    if not isinstance(data, str):
        raise SpecError(
            f"{source.label}: training.network {network.name!r}: the key 'dataset' is missing;"
            " expected the data set that it is for"
        )
    named = {"model_name": network.name, "dataset_name": data, **kwargs}
    return replace(source, entrypoint="ingot.zoo:get_model_by_name", entrypoint_kwargs=named)
