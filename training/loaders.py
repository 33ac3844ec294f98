"""Loaders of the user's own: their part for each worker, and an order that the seed decides."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from ..errors import InputError, UsageError
from .data import Splits
from .distributed import Workers
from .inputter import Inputter, random_generator
from .randomness import RandomStream, seed_everything

_ORDER, _SAMPLES = 1, 2
"""Which random numbers are seeded: the same on every worker, or of each worker's own samples."""


class Shard:
    """Every n-th item of a sampler, as many for each worker.

    Args:
        sampler: of indices, or of batches of them.
        workers: which part.
    """

    def __init__(self, sampler: Any, workers: Workers) -> None:
        self.sampler, self.workers = sampler, workers
        self._drawn: list[Any] | None = None

    def draw(self) -> None:
        """Draw the order of the next epoch, all at once: nothing else must draw in between."""
        order = list(self.sampler)
        count = self.workers.count
        self._drawn = order[self.workers.rank :: count][: len(order) // count]

    def __iter__(self) -> Iterator[Any]:
        if self._drawn is None:
            self.draw()
        drawn, self._drawn = self._drawn, None
        return iter(drawn or ())

    def __len__(self) -> int:
        return len(self.sampler) // self.workers.count


class EveryNth:
    """Every n-th batch of a loader, as many for each worker.

    Args:
        loader: all batches, in an order that is the same on every worker.
        workers: which part.
    """

    def __init__(self, loader: Iterable[Any], workers: Workers) -> None:
        self.loader, self.workers = loader, workers

    def __iter__(self) -> Iterator[Any]:
        own = None
        for index, batch in enumerate(self.loader):
            place = index % self.workers.count
            if place == self.workers.rank:
                own = batch
            if place == self.workers.count - 1:  # a round is complete: nobody waits for another
                yield own

    def __len__(self) -> int:
        return len(self.loader) // self.workers.count  # type: ignore[arg-type]


def split_for(splits: Splits, workers: Workers) -> Splits:
    """Return splits of which ``train`` is this worker's part; the others are whole."""
    if workers.count == 1:
        return splits
    return {**splits, "train": part_of(splits["train"], workers)}


def part_of(loader: Iterable[Any], workers: Workers) -> Iterable[Any]:
    """Return the part of a training split that this worker has.

    An inputter deals out its samples, and a ``DataLoader`` what its sampler or batch sampler draws,
    unless that deals out itself, as a ``DistributedSampler``; of anything else each worker takes
    every n-th batch.

    Raises:
        UsageError: a ``DataLoader`` has an iterable data set.
    """
    if isinstance(loader, Inputter):
        loader.rank, loader.workers = workers.rank, workers.count
        return loader
    if "torch" not in sys.modules:
        return EveryNth(loader, workers)
    from torch.utils.data import BatchSampler, DataLoader, IterableDataset

    if not isinstance(loader, DataLoader):
        return EveryNth(loader, workers)
    if isinstance(loader.dataset, IterableDataset):
        raise UsageError(
            "the split 'train' is a DataLoader with an iterable data set; expected one whose"
            " samples can be dealt out to the workers",
            hint="give the data set a __len__ and __getitem__, or train with one process",
        )
    if any(hasattr(part, "num_replicas") for part in _parts(loader)):
        return loader
    # A copy keeps all that the loader was made with, in a class of the user's own, too.
    own = copy.copy(loader)
    changed: dict[str, Any] = {"_iterator": None}
    if loader.batch_size is not None:
        changed["sampler"] = Shard(loader.sampler, workers)
        changed["batch_sampler"] = BatchSampler(
            changed["sampler"], loader.batch_size, loader.drop_last
        )
    elif loader.batch_sampler is not None:
        changed["batch_sampler"] = Shard(loader.batch_sampler, workers)
    else:
        changed["sampler"] = Shard(loader.sampler, workers)
    vars(own).update(changed)  # a DataLoader refuses that its attributes are set
    return own


def seeded_batches(
    loader: Iterable[Any], seed: int, epoch: int, rank: int = 0, start: int = 0
) -> Iterator[Any]:
    """Return the batches of an epoch from ``start`` on, which the seed and the epoch decide.

    Their random numbers are a stream apart from that of the network. Their order is drawn from the
    same numbers on every worker; what a ``DataLoader`` draws for each sample differs by worker.

    Raises:
        InputError: there are no more than ``start`` batches.
    """
    stream = RandomStream(seed, epoch, _ORDER)
    with stream:
        parts = _parts(loader)
        _seed_parts(parts, epoch, seed, epoch, _ORDER)
        shards = [part for part in parts if isinstance(part, Shard)]
        for shard in shards:
            shard.draw()
        if shards:
            seed_everything(seed, epoch, _SAMPLES, rank)
            _seed_parts(parts, epoch, seed, epoch, _SAMPLES, rank)
        batches = _within(stream, iter(loader))
    skipped = sum(1 for _ in islice(batches, start))
    if skipped < start:
        raise InputError(
            f"the split 'train' gave {skipped} batches; the checkpoint was written after {start}"
        )
    return batches


def _within(stream: RandomStream, batches: Iterator[Any]) -> Iterator[Any]:
    done = object()
    while True:
        with stream:
            batch = next(batches, done)
        if batch is done:
            return
        yield batch


def _parts(loader: Any) -> list[Any]:
    """Return a loader with what it draws from: its samplers, and the loader that it wraps."""
    found: list[Any] = []
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        if part is None or any(part is other for other in found):
            continue
        found.append(part)
        names = ("loader", "sampler", "batch_sampler")
        waiting += [getattr(part, name, None) for name in names]
    return found


def _seed_parts(parts: list[Any], epoch: int, *seeds: int) -> None:
    """Seed the generators that a loader and its samplers have of their own."""
    drawn = int(random_generator(*seeds).integers(0, 2**62))
    for part in parts:
        generator: Any = getattr(part, "generator", None)
        if hasattr(generator, "manual_seed"):
            generator.manual_seed(drawn)
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def facts_of(loader: Any) -> dict[str, int | None]:
    """Return what tells the data of a run: batch size, batches of an epoch, and samples."""
    batch_size = getattr(loader, "batch_size", None)
    samples = getattr(loader, "num_samples", None)
    return {
        "batch_size": batch_size if isinstance(batch_size, int) else None,
        "batches": length_of(loader),
        "samples": samples
        if isinstance(samples, int)
        else length_of(getattr(loader, "dataset", ())),
    }


def length_of(value: Any) -> int | None:
    """Return how many batches or samples there are; None when the data does not say."""
    try:
        return len(value) or None
    except (TypeError, NotImplementedError):
        return None
