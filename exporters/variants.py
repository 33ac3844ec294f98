"""Plans which files an export writes: their shapes, and the inputs to trace and check with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UsageError
from ..runtime.random_inputs import Key, keyed_dimensions, seeded_inputs
from ..specs.tensors import Dimension, TensorSpec
from .base import Array, Resolution, Variant

Mode = Literal["both", "dynamic", "fixed"]
Other = Literal["shorter", "longer"]

_IMAGE_SIZE = 64
"""Height and width of images of which neither spec nor golden data tell the size."""
_LONGER = 256
"""By how much a free size is raised at most, to try another one."""
_SIZE = 8
"""Any other size that nothing tells."""
_EXAMPLE_BATCH = 2
"""``torch.export`` takes a size of 1 for a constant."""
PARITY_BATCHES = (1, 3)
_MOST_CHANNELS = 4
_CHANNELS_LAST = ("keras", "tensorflow")


@dataclass(frozen=True)
class ParityInputs:
    """Inputs that a file is checked on.

    Attributes:
        name: what they are, for messages.
        arrays: by input name.
        optional: of sizes that the source may refuse; then they are left out.
    """

    name: str
    arrays: Mapping[str, Array]
    optional: bool = False


@dataclass(frozen=True)
class Shapes:
    """The tensors of a model, and what is known of their free sizes.

    Attributes:
        inputs: the inputs that are not optional.
        outputs: the outputs.
        channels_last: images are NHWC, where their shape does not tell.
        golden: golden inputs; empty when there are none.
        seed: of random inputs.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    channels_last: bool
    golden: Mapping[str, Array]
    seed: int = 0

    @property
    def images(self) -> dict[str, tuple[int, int]]:
        """Axes of height and width of every input of four dimensions, by name."""
        return {
            spec.name: _image_axes(spec.shape, self.channels_last)
            for spec in self.inputs
            if spec.shape is not None and len(spec.shape) == 4 and spec.dtype != "string"
        }

    @property
    def resolution(self) -> Resolution | None:
        """The data's own resolution: the spec's, or that of the golden data; else None."""
        for name, axes in self.images.items():
            spec = next(spec for spec in self.inputs if spec.name == name)
            sizes = [self._size(spec, axis) for axis in axes]
            if isinstance(sizes[0], int) and isinstance(sizes[1], int):
                return sizes[0], sizes[1]
        return None

    @property
    def scaled(self) -> dict[str, tuple[int, int]]:
        """Return those of :attr:`images` that a resolution goes for.

        One that is fixed to another size than the data's own is no such image: a grid, a mask.
        """
        own, by_name = self.resolution, {spec.name: spec for spec in self.inputs}
        found = {}
        for name, axes in self.images.items():
            sizes = tuple((by_name[name].shape or ())[axis] for axis in axes)
            if sizes == own or not all(isinstance(size, int) for size in sizes):
                found[name] = axes
        return found

    def _size(self, spec: TensorSpec, axis: int) -> Dimension:
        dim = (spec.shape or ())[axis]
        if isinstance(dim, int):
            return dim
        found = self.golden.get(spec.name)
        return int(found.shape[axis]) if found is not None and found.ndim > axis else None

    def sizes(
        self, batch: int, resolution: Resolution | None, other: Other | None = None
    ) -> dict[Key, int]:
        """Return a size for every free dimension; ``other`` takes other ones than the data's."""
        own = resolution or self.resolution or (_IMAGE_SIZE, _IMAGE_SIZE)
        images, sizes = self.images, {}
        for spec in self.inputs:
            for axis, (dim, key) in enumerate(keyed_dimensions(spec)):
                if isinstance(dim, int) or key in sizes:
                    continue
                if axis == 0:
                    sizes[key] = batch
                elif spec.name in images and axis in images[spec.name]:
                    sizes[key] = own[images[spec.name].index(axis)]
                else:
                    known = self._size(spec, axis)
                    size = known if isinstance(known, int) else _SIZE
                    if other == "shorter":
                        size -= size // 3
                    elif other == "longer":
                        size += min(4 * size, _LONGER) + 1
                    sizes[key] = size
        return sizes

    def random(
        self,
        batch: int,
        resolution: Resolution | None,
        offset: int,
        other: Other | None = None,
        wide: bool = False,
    ) -> dict[str, Array]:
        """Return seeded random inputs; ``offset`` makes them others under the same seed."""
        sizes = self.sizes(batch, resolution, other)
        return seeded_inputs(self.inputs, sizes, self.seed + offset, wide=wide)

    def at(self, resolution: Resolution) -> Shapes:
        """Return the same model at a resolution that its images are fixed to."""
        images = self.scaled
        symbols: dict[str, int] = {}
        inputs, changed = [], False
        for spec in self.inputs:
            shape = list(spec.shape or ())
            for axis, size in zip(images.get(spec.name, ()), resolution, strict=False):
                dim = shape[axis]
                if isinstance(dim, str):
                    symbols[dim] = size
                changed |= isinstance(dim, int) and dim != size
                shape[axis] = size
            inputs.append(replace(spec, shape=tuple(shape) if spec.shape is not None else None))
        return replace(
            self,
            inputs=_known(inputs, symbols),
            outputs=_known(self.outputs, symbols, forget=changed),
            golden={} if changed else self.golden,
        )

    def fixed(self, keep_batch: bool = False) -> Shapes:
        """Return the same model with every size fixed, and a batch of 1 unless that is kept."""
        sizes = self.sizes(1, None)
        if keep_batch:
            leading = {keyed_dimensions(spec)[0][1] for spec in self.inputs if spec.shape}
            sizes = {key: size for key, size in sizes.items() if key not in leading}
        symbols = {key: size for key, size in sizes.items() if isinstance(key, str)}
        inputs = tuple(
            replace(
                spec,
                shape=tuple(
                    dim if isinstance(dim, int) else sizes.get(key, dim)
                    for dim, key in keyed_dimensions(spec)
                ),
            )
            for spec in self.inputs
        )
        return replace(self, inputs=inputs, outputs=_known(self.outputs, symbols), golden={})

    @property
    def is_free(self) -> bool:
        """Whether any dimension of an input is free."""
        return any(not isinstance(dim, int) for spec in self.inputs for dim in spec.shape or ())


def _known(
    specs: Sequence[TensorSpec], symbols: Mapping[str, int], forget: bool = False
) -> tuple[TensorSpec, ...]:
    """Fill in symbols; ``forget`` frees fixed sizes beyond the first axis, which may be others."""

    def known(axis: int, dim: Dimension) -> Dimension:
        if isinstance(dim, str):
            return symbols.get(dim, dim)
        return None if forget and axis > 0 else dim

    return tuple(
        spec
        if spec.shape is None
        else replace(spec, shape=tuple(known(axis, dim) for axis, dim in enumerate(spec.shape)))
        for spec in specs
    )


def _image_axes(shape: Sequence[Dimension], channels_last: bool) -> tuple[int, int]:
    def is_channels(dim: Dimension) -> bool:
        return isinstance(dim, int) and dim <= _MOST_CHANNELS

    first, last = is_channels(shape[1]), is_channels(shape[3])
    if first != last:
        channels_last = last
    return (1, 2) if channels_last else (2, 3)


def shapes_of(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    framework: str,
    golden: Mapping[str, Array],
    seed: int = 0,
) -> Shapes:
    """Collect what is known of a model's shapes; optional inputs are left out."""
    needed = tuple(spec for spec in inputs if not spec.optional)
    return Shapes(needed, tuple(outputs), framework in _CHANNELS_LAST, golden, seed)


def plan_variants(
    shapes: Shapes,
    resolutions: Sequence[Resolution],
    mode: Mode,
    label: str,
    static: bool = False,
) -> list[Variant]:
    """Say which files are written: one of free shapes, and one a resolution.

    Args:
        shapes: the model's.
        resolutions: (height, width) asked for; none takes the data's own, for images.
        mode: ``both``; ``dynamic`` leaves out the fixed ones; ``fixed`` the other, and fixes the
            batch to 1, too.
        label: the model, for messages.
        static: the converter fixes every size, and the batch to 1: there is no dynamic-shape file;
            the batch stays free in the variant, whose samples are run one by one.

    Raises:
        UsageError: a resolution is asked for, and no input is an image; or nothing is free, and
            only a dynamic-shape file is asked for.
    """
    if resolutions and not shapes.images:
        found = ", ".join(f"{spec.name}: {spec.describe()}" for spec in shapes.inputs)
        raise UsageError(
            f"{label}: --resolution goes with images, inputs of four dimensions; found {found}"
        )
    if mode == "dynamic" and not shapes.is_free:
        raise UsageError(
            f"{label}: no size of its inputs is free, so there is no dynamic-shape file",
            hint="name free sizes by a symbol in the spec: shape: [batch, 3, 32, 32]",
        )
    if static and mode == "dynamic":
        raise UsageError(f"{label}: the converter fixes every size; there is no dynamic-shape file")
    variants = []
    if mode != "fixed" and shapes.is_free and not static:
        variants.append(_variant(shapes, None))
    if mode != "dynamic":
        own = [shapes.resolution] if shapes.resolution is not None else []
        for resolution in dict.fromkeys(resolutions or own):
            fixed = shapes.at(resolution)
            retrace = _differs(shapes, resolution)
            if static or mode == "fixed":
                fixed = fixed.fixed(keep_batch=static)
            variants.append(_variant(fixed, resolution, retrace, static))
        if not variants:
            variants.append(_variant(shapes.fixed(keep_batch=static), None, False, static))
    return variants


def _differs(shapes: Shapes, resolution: Resolution) -> bool:
    """Whether the spec fixes another resolution than this one."""
    for spec in shapes.inputs:
        for axis, size in zip(shapes.scaled.get(spec.name, ()), resolution, strict=False):
            dim = (spec.shape or ())[axis]
            if isinstance(dim, int) and dim != size:
                return True
    return False


def _variant(
    shapes: Shapes, resolution: Resolution | None, retrace: bool = False, static: bool = False
) -> Variant:
    example = shapes.random(1 if static else _EXAMPLE_BATCH, resolution, 0)
    is_fixed = static or not shapes.is_free
    return Variant(resolution, shapes.inputs, shapes.outputs, example, is_fixed, retrace)


def parity_inputs(
    shapes: Shapes, variant: Variant, resolutions: Sequence[Resolution], wide: bool = True
) -> list[ParityInputs]:
    """Return the inputs that a file is checked on.

    Golden inputs where their shapes fit, and seeded random ones at batch 1 and 3; a file of free
    resolution gets these at every resolution asked for. Free sizes are tried at a second value,
    too: a converter may have fixed them to the first, or traced a branch away that others take.

    Args:
        shapes: the model's.
        variant: the file's.
        resolutions: those asked for.
        wide: also inputs from a wide range, where the source takes them; not for half precision,
            in which they may overflow.
    """
    own = replace(shapes, inputs=variant.inputs, outputs=variant.outputs)
    sets: list[ParityInputs] = []
    if shapes.golden and _fits(variant.inputs, shapes.golden):
        arrays = {spec.name: shapes.golden[spec.name] for spec in variant.inputs}
        sets.append(ParityInputs("golden inputs", arrays))
    sizes: list[Resolution | None] = [variant.resolution]
    has_free_images = variant.resolution is None and _has_free_images(own)
    if has_free_images:
        sizes = list(dict.fromkeys([shapes.resolution, *resolutions]))
    has_batch = any(spec.shape and not isinstance(spec.shape[0], int) for spec in variant.inputs)
    batches = PARITY_BATCHES if has_batch else PARITY_BATCHES[:1]

    def add(
        batch: int, size: Resolution | None, other: Other | None = None, optional: bool = False
    ) -> None:
        text = f"random inputs, batch {batch}" if has_batch else "random inputs"
        text += "" if size is None else " at {}x{}".format(*size)
        text += f", {other}" if other is not None else ""
        arrays = own.random(batch, size, 1 + len(sets), other)
        sets.append(ParityInputs(text, arrays, optional or other is not None))

    for size in sizes:
        for batch in batches:
            add(batch, size)
    if has_free_images and not resolutions:
        height, width = shapes.resolution or (_IMAGE_SIZE, _IMAGE_SIZE)
        # An odd size shows what a model does to those that it does not like.
        for other_size in ((2 * height, width), (height + 1, width + 3)):
            add(batches[-1], other_size, optional=True)
    elif own.sizes(1, None) != own.sizes(1, None, "shorter"):
        add(batches[-1], variant.resolution, "shorter")
        add(batches[0], variant.resolution, "longer")
    if wide:
        # Negative and large values: a branch that depends on them may have been traced away.
        arrays = own.random(batches[-1], sizes[0], 1 + len(sets), wide=True)
        sets.append(ParityInputs("wide random inputs", arrays, optional=True))
    return sets


def _has_free_images(shapes: Shapes) -> bool:
    """Whether a height or width is free."""
    return any(
        not isinstance((spec.shape or ())[axis], int)
        for spec in shapes.inputs
        for axis in shapes.images.get(spec.name, ())
    )


def _fits(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> bool:
    return all(
        spec.name in arrays
        and spec.shape is not None
        and arrays[spec.name].ndim == len(spec.shape)
        and all(
            not isinstance(dim, int) or dim == size
            for dim, size in zip(spec.shape, arrays[spec.name].shape, strict=True)
        )
        for spec in specs
    )
