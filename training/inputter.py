"""Inputters yield batches; an augmenter changes the samples of the training split at random."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Convert = Callable[[Array], Any]


class Augmenter(ABC):
    """Changes images, in batches, before they are scaled."""

    @abstractmethod
    def __call__(self, images: Array, generator: np.random.Generator | None) -> Array:
        """Return changed images.

        Args:
            images: ``(batch, channels, height, width)``, values 0..255, never written to.
            generator: where random numbers come from; None outside of training: then only what
                is not random is done.

        Returns:
            images of the same shape; float32 where values are no longer whole.
        """


def random_generator(*seeds: int) -> np.random.Generator:
    """Return the random generator that belongs to a few integers (seed, epoch, batch, ...)."""
    return np.random.default_rng([seed & 0xFFFFFFFF for seed in seeds])


class Inputter(ABC):
    """The data pipeline of one split: it reads, shuffles, augments and batches.

    The batches of an epoch are a function of the seed and the epoch, so that a run that was killed
    goes on with the same ones. Iterating over it gives the batches of the next epoch.

    Args:
        batch_size: samples a batch; the last one may be smaller.
        shuffle: draw a new order each epoch.
        drop_last: leave out a last batch that is smaller.
        augmenter: changes the images.
        seed: of order and augmentation.
        convert: makes the framework's tensors out of arrays; None yields arrays.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        augmenter: Augmenter | None = None,
        seed: int = 0,
        convert: Convert | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.augmenter = augmenter
        self.seed = seed
        self.convert = convert
        self.rank, self.workers = 0, 1
        self._epoch = 0

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """How many samples the split has."""

    @abstractmethod
    def read(self, indices: Array, generator: np.random.Generator | None) -> Sequence[Any]:
        """Return one batch, as arrays, or lists or dicts of them.

        Args:
            indices: which samples.
            generator: for augmentation; None outside of training.
        """

    def keep(self, folder: Path, goes_on: bool) -> None:  # noqa: B027 - most have nothing to keep
        """Write what a trained network needs beside its weights, such as a vocabulary.

        Args:
            folder: of the run.
            goes_on: the run has begun earlier, and is gone on with.

        Raises:
            UsageError: what the earlier part wrote was something else.
        """

    def __len__(self) -> int:
        """How many batches an epoch has, on this worker."""
        mine = self.num_samples // self.workers if self.workers > 1 else self.num_samples
        full, rest = divmod(mine, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        epoch = self._epoch
        self._epoch += 1
        return self.batches(epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, ...]]:
        """Yield the batches of an epoch, from the batch ``start`` on."""
        order = np.arange(self.num_samples)
        if self.shuffle:
            order = random_generator(self.seed, epoch).permutation(order)
        if self.workers > 1:  # every worker gets as many, so that none waits for the others
            order = order[self.rank :: self.workers][: self.num_samples // self.workers]
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            generator = None
            if self.shuffle:
                generator = random_generator(self.seed, epoch, index, self.rank)
            arrays = self.read(chosen, generator)
            yield tuple(converted(array, self.convert) for array in arrays)


def converted(value: Any, convert: Convert | None) -> Any:
    """Return arrays, also those in lists and dicts, as the framework's tensors."""
    if convert is None:
        return value
    if isinstance(value, dict):
        return {name: converted(child, convert) for name, child in value.items()}
    if isinstance(value, list):
        return [converted(child, convert) for child in value]
    return convert(value)


def prefetched(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """Yield items that a thread makes ahead; what it raises is raised here.

    Args:
        items: is iterated in the thread.
        depth: how many are made ahead.
    """
    done = object()
    waiting: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((None, item)):
                    return
            put((None, done))
        except BaseException as error:
            put((error, None))

    thread = threading.Thread(target=work, daemon=True, name="ingot-prefetch")
    thread.start()
    try:
        while True:
            error, item = waiting.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stopped.set()
        thread.join(timeout=5)
