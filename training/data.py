"""The splits of a spec: the user's own loaders, or built-in inputters by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, ModelError, SpecError
from ..runtime.sources import shown_path
from ..specs.hints import did_you_mean
from .components import Components, parameters_of
from .inputter import Array, Augmenter, Convert, Inputter, prefetched, random_generator
from .randomness import DATA_SEED, seed_everything

Splits = Mapping[str, Iterable[Any]]


@dataclass(frozen=True)
class Scaling:
    """How values of an image become what the network takes: ``(value * scale - mean) / std``.

    Attributes:
        scale: factor of values 0..255.
        mean: what is subtracted, of each channel.
        std: what is divided by, of each channel.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, images: Array) -> Array:
        """Return float32 images, of images ``(batch, channels, height, width)``."""
        std = np.asarray(self.std, np.float32)
        factor = (np.float32(self.scale) / std).reshape(1, -1, 1, 1)
        shift = (np.asarray(self.mean, np.float32) / std).reshape(1, -1, 1, 1)
        scaled: Array = images * factor
        scaled -= shift
        return scaled


class ArrayInputter(Inputter):
    """Batches of arrays in memory.

    Args:
        arrays: inputs, then labels; equally many samples in each.
        batch_size: samples a batch.
        scaling: of the first array, after augmentation; None leaves it as it is.
        options: those of :class:`Inputter`.
    """

    def __init__(
        self,
        arrays: Sequence[Array],
        batch_size: int,
        *,
        scaling: Scaling | None = None,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        counts = [len(array) for array in arrays]
        if len(set(counts)) != 1:
            raise InputError(f"arrays have {counts} samples; expected equally many in each")
        self.arrays = tuple(arrays)
        self.scaling = scaling

    @property
    def num_samples(self) -> int:
        return len(self.arrays[0])

    def read(self, indices: Array, generator: np.random.Generator | None) -> Sequence[Array]:
        first, *others = (array[indices] for array in self.arrays)
        if self.augmenter is not None:
            first = self.augmenter(first, generator)
        if self.scaling is not None:
            first = self.scaling(first)
        return [np.ascontiguousarray(first), *others]

    def batches(self, epoch: int, start: int = 0) -> Any:
        found = super().batches(epoch, start)
        # Work beside that of the network is worth a thread only when there is some.
        is_heavy = self.augmenter is not None or self.scaling is not None
        return prefetched(found) if is_heavy else found


@dataclass(frozen=True)
class DataContext:
    """What built-in inputters get beside the arguments of the spec.

    Attributes:
        root: the folder that relative paths are meant from.
        seed: of shuffling and augmentation.
        augmenter: of the training split.
        batch_size: ``training.batch_size``, which comes before an inputter's own.
        convert: makes the framework's tensors out of arrays.
        input_names: names of the model's inputs.
        label: what messages call the spec.
        input_shapes: their shapes, as the spec has them.
        layout: brings images ``(batch, channels, height, width)`` into the layout of the network,
            where that is another one.
        key: where the spec has the arguments of the data.
        weights: of the network; None where it is trained from initial ones.
        tokens: how many the network has embeddings for; None when it does not say.
    """

    root: Path
    seed: int = 0
    augmenter: Augmenter | None = None
    batch_size: int | None = None
    convert: Convert | None = None
    input_names: tuple[str, ...] = ()
    label: str = "data"
    input_shapes: tuple[tuple[int | str | None, ...] | None, ...] = ()
    layout: Convert | None = None
    key: str = "data.kwargs"
    weights: Path | None = None
    tokens: int | None = None

    def image_shape(self) -> tuple[int, int, int] | None:
        """Return channels, height and width of the first input; None where they are not fixed."""
        shape = self.input_shapes[0] if self.input_shapes else None
        if shape is None or len(shape) != 4:
            return None
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        if len(sizes) != 3:
            return None
        # Channels stand first, or last where only that can be meant.
        if sizes[0] not in (1, 3) and sizes[2] in (1, 3):
            sizes = [sizes[2], sizes[0], sizes[1]]
        return sizes[0], sizes[1], sizes[2]

    def options(self, split: str, batch_size: int, as_stored: bool = False) -> dict[str, Any]:
        """Return the arguments of an :class:`Inputter` for a split.

        Args:
            split: its name.
            batch_size: unless the context has one.
            as_stored: arrays keep their layout; else images are brought into the network's.
        """
        return {
            "batch_size": self.batch_size or batch_size,
            "shuffle": split == "train",
            "augmenter": self.augmenter,
            "seed": self.seed,
            "convert": self.convert if as_stored or self.layout is None else self.layout,
        }

    def path(self, name: str | Path) -> Path:
        """Return a path of the spec as an absolute one."""
        return self.root / Path(name).expanduser()

    def require(self, name: str | Path, key: str) -> Path:
        """Return a path of the spec, which has to be there, as it is called in messages.

        Args:
            name: a file or a folder.
            key: the argument of the data that has it.

        Raises:
            SpecError: it is not there.
        """
        path = self.path(name)
        if not path.exists():
            kind = "folder" if key.partition(".")[0] in ("folder", "images") else "file"
            raise SpecError(f"{self.label}: {self.key}.{key}: {shown_path(path)}: no such {kind}")
        return Path(shown_path(path))

    def require_all(self, kwargs: Mapping[str, Any]) -> None:
        """Check that the files that the arguments of built-in data name are there.

        What a CSV or an archive names is checked where that is read.

        Raises:
            SpecError: one is not there.
        """
        archive = kwargs.get("archive")
        for key in ("archive", "vocabulary", "folder", *(() if archive else ("images",))):
            if isinstance(kwargs.get(key), str):
                self.require(kwargs[key], key)
        if archive:
            return
        for key in ("files", "images"):
            given = kwargs.get(key)
            for split, names in given.items() if isinstance(given, Mapping) else ():
                if isinstance(names, str) and not self.path(names).exists():
                    for name in names.split(","):
                        self.require(name.strip(), f"{key}.{split}")


def make_splits(
    components: Components, name: str, kwargs: Mapping[str, Any], key: str, context: DataContext
) -> Splits:
    """Return the splits that a spec names.

    The global random generators of Python, NumPy and PyTorch are seeded before with
    :data:`DATA_SEED`.

    Args:
        components: the parts of the spec.
        name: a built-in inputter, or ``module:attribute``.
        kwargs: its arguments.
        key: where the spec names it.
        context: what built-in inputters get beside.

    Raises:
        SpecError: it is unknown, or does not take the arguments.
        ModelError: the user's code fails, or returns no splits.
        InputError: the data cannot be read.
    """
    # A part that the user's code draws at random is the same in each command and on each worker.
    seed_everything(DATA_SEED)
    found = components.find("data", name, key)
    is_built_in = ":" not in name
    if not is_built_in and context.augmenter is not None:
        raise SpecError(
            f"{components.label}: training.augmenter: {name!r} is data of your own; expected it to"
            " augment, or a built-in inputter"
        )
    if callable(found):
        extra: dict[str, Any] = {"context": context} if is_built_in else {}
        if is_built_in:
            context.require_all(kwargs)
        if not is_built_in and context.batch_size is not None:
            if "batch_size" not in parameters_of(found):
                raise SpecError(
                    f"{components.label}: training.batch_size: {name!r} takes no batch_size",
                    hint="give it that parameter, or leave out training.batch_size",
                )
            kwargs = {**kwargs, "batch_size": context.batch_size}
        splits = components.call(found, kwargs, key, name, **extra)
    else:
        splits = found
    if not isinstance(splits, Mapping) or not splits:
        raise ModelError(
            f"{components.label}: {key} {name!r} returned a {type(splits).__name__}; expected"
            ' splits by name: {"train": iterable, "test": iterable}'
        )
    for split, loader in splits.items():
        if not isinstance(loader, Iterable):
            raise ModelError(
                f"{components.label}: {key} {name!r}: the split {split!r} is a"
                f" {type(loader).__name__}; expected an iterable of batches"
            )
    return splits


def split_of(splits: Splits, name: str, label: str, key: str) -> Iterable[Any]:
    """Return a split by name.

    Raises:
        SpecError: there is no such split.
    """
    if name not in splits:
        raise SpecError(
            f"{label}: {key}: found {name!r}; the data has the splits {', '.join(splits)}",
            hint=did_you_mean(name, splits),
        )
    return splits[name]


def digits_splits(context: DataContext, batch_size: int = 128) -> Splits:
    """The embedded digits: images ``(batch, 1, 8, 8)``, values 0..1, and labels 0..9."""
    from ..zoo.digits import load_digits

    found = {}
    for split in ("train", "test"):
        arrays = load_digits(split)
        found[split] = ArrayInputter(arrays, **context.options(split, batch_size))
    return found


def npz_splits(
    context: DataContext,
    files: Mapping[str, str],
    inputs: Sequence[str] | None = None,
    label: str = "label",
    batch_size: int = 128,
) -> Splits:
    """Arrays in ``.npz`` files, one a split.

    Args:
        context: given by Ingot.
        files: file by split.
        inputs: the arrays that the model gets, in order; those of the spec by default.
        label: the array of labels.
        batch_size: samples a batch.
    """
    names = list(inputs or context.input_names)
    return {
        split: ArrayInputter(
            npz_arrays(context.require(file, f"files.{split}"), names, label),
            **context.options(split, batch_size, as_stored=True),
        )
        for split, file in files.items()
    }


def npz_arrays(path: Path, inputs: Sequence[str], label: str | None) -> list[Array]:
    """Read arrays by name, without pickle.

    Raises:
        InputError: the file cannot be read, or lacks an array.
    """
    from ..runtime.golden import read_npz

    arrays = read_npz(path, str(path))
    wanted = [*inputs, *([] if label is None else [label])]
    for name in wanted:
        if name not in arrays:
            raise InputError(
                f"{path}: found no array {name!r}; it has {', '.join(sorted(arrays)) or 'none'}",
                hint=did_you_mean(name, arrays),
            )
    counts = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in wanted}
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"{path}: found {found} samples; expected equally many in each array")
    return [arrays[name] for name in wanted]


def synthetic_splits(
    context: DataContext,
    shape: Sequence[int],
    classes: int = 10,
    samples: Mapping[str, int] | int = 1024,
    batch_size: int = 128,
) -> Splits:
    """Random inputs and labels, for speed tests.

    Args:
        context: given by Ingot.
        shape: of one sample.
        classes: how many labels there are.
        samples: how many samples, of each split or by split.
        batch_size: samples a batch.
    """
    counts = samples if isinstance(samples, Mapping) else dict.fromkeys(("train", "test"), samples)
    found: dict[str, Inputter] = {}
    for number, (split, count) in enumerate(counts.items()):
        generator = random_generator(context.seed, number)
        inputs = generator.standard_normal((count, *shape), np.float32)
        labels = generator.integers(0, classes, count)
        options = context.options(split, batch_size, as_stored=True)
        found[split] = ArrayInputter((inputs, labels), **options)
    return found
