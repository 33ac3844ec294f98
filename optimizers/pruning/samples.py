"""What a search needs of the data: batches to calibrate on, and arguments of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...training.assess import user_code
from ...training.inputter import Array, Inputter, random_generator
from ...training.loaders import seeded_batches
from ...training.problem import Problem
from ...training.randomness import seed_everything
from ...training.runner import batch_size_of
from .modules import Inputs, map_tensors, tensors_in

if TYPE_CHECKING:
    import torch
    from torch import nn

SAMPLES = 256
"""Training samples that sensitivities are measured on."""
FITTED_SAMPLES = 512
"""Further ones that a pruned network is refitted on."""
_MOST_VALUES = 2**22
"""Of inputs that go through a network at once: its layers need many times as much memory."""
_OF_TOKEN = 256
"""Values that a whole number among the inputs counts as: it becomes a vector."""
_EXAMPLES = 2
"""Samples that the network is traced with: a batch of 1 hides what depends on the batch."""


def calibration_batches(
    problem: Problem, seed: int, samples: int = SAMPLES, least: int | None = None
) -> list[Any]:
    """Return the first batches of the training split, of about so many samples.

    Args:
        problem: has the data.
        seed: of its order.
        samples: how many.
        least: beyond so many samples, no more than go through a network at once; None is all.

    Raises:
        InputError: the split gives none.
    """
    seed_everything(seed, 0, 0)
    loader = problem.split("train", "data.splits")
    is_own = isinstance(loader, Inputter)
    batches = loader.batches(0) if is_own else seeded_batches(loader, seed, 0)
    found: list[Any] = []
    count = beyond = 0
    for batch in batches:
        found.append(batch)
        if least is not None and count >= least:
            beyond += sum(tensor.numel() for tensor in tensors_in(batch))
        count += batch_size_of(batch)
        if count >= samples or beyond >= _MOST_VALUES:
            break
    close = getattr(batches, "close", None)
    if close is not None:
        close()
    if not found:
        raise InputError(f"{problem.label}: the split 'train' gave no batch")
    return found


def first_samples(batches: Sequence[Any], samples: int) -> list[Any]:
    """Return as many of the first batches as it takes for about so many samples."""
    found: list[Any] = []
    count = 0
    for batch in batches:
        found.append(batch)
        count += batch_size_of(batch)
        if count >= samples:
            break
    return found


def example_inputs(problem: Problem, network: nn.Module, batch: Any, seed: int) -> Inputs:
    """Return random arguments of the network, like those that the forward pass makes of a batch.

    Whole numbers (tokens, masks) are those of the batch.

    Raises:
        InputError: the forward pass does not call the network.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    size = batch_size_of(batch)

    def example(tensor: torch.Tensor) -> torch.Tensor:
        is_batch = tensor.ndim > 0 and tensor.shape[0] == size
        part = tensor.detach()[:_EXAMPLES] if is_batch else tensor.detach()
        if not part.is_floating_point():
            return part.clone()
        values = torch.randn(part.shape, generator=generator, dtype=torch.float32)
        return values.to(part.device, part.dtype)

    args, kwargs = _arguments(problem, network, batch)
    return map_tensors(tuple(args), example), map_tensors(kwargs, example)


def joined_inputs(problem: Problem, network: nn.Module, batches: Sequence[Any]) -> Inputs:
    """Return the arguments that the forward pass makes of batches, as those of one batch.

    Batches that do not fit the first one (of images of another size) are left out, and so is what
    would be too much for the memory at once.

    Raises:
        InputError: the forward pass does not call the network.
    """
    import torch

    taken: list[list[torch.Tensor]] = []
    first: Inputs | None = None
    sizes: list[int] = []
    values = 0
    for batch in batches:
        found = _arguments(problem, network, batch)
        tensors = [tensor.detach() for tensor in tensors_in([*found[0], *found[1].values()])]
        if first is not None and not _same_but_for_batch(taken[0], sizes[0], tensors):
            continue
        values += sum(_weight(tensor) for tensor in tensors)
        if taken and values > _MOST_VALUES:
            break
        first = first or found
        taken.append(tensors)
        sizes.append(batch_size_of(batch))
    assert first is not None
    columns = zip(*taken, strict=True)

    def join(tensor: torch.Tensor) -> torch.Tensor:
        parts = next(columns)
        is_batch = tensor.ndim > 0 and tensor.shape[0] == sizes[0]
        return torch.cat(parts) if is_batch else parts[0]

    return map_tensors(tuple(first[0]), join), map_tensors(first[1], join)


def _weight(tensor: torch.Tensor) -> int:
    """Return how many values a tensor counts as, of those that go through a network at once."""
    return tensor.numel() * (1 if tensor.is_floating_point() else _OF_TOKEN)


def _same_but_for_batch(
    first: Sequence[torch.Tensor], size: int, others: Sequence[torch.Tensor]
) -> bool:
    """Whether tensors can be joined to the first ones, whose batch has this size."""
    if len(first) != len(others):
        return False
    for one, other in zip(first, others, strict=True):
        is_batch = one.ndim > 0 and one.shape[0] == size
        if one.dtype != other.dtype or one.ndim != other.ndim:
            return False
        if one.shape[1:] != other.shape[1:] or not (is_batch or one.shape == other.shape):
            return False
    return True


def _arguments(problem: Problem, network: nn.Module, batch: Any) -> Inputs:
    """Return what the forward pass calls the network with for a batch, in eval mode."""
    import torch

    given: list[Inputs] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        given.append((args, kwargs))

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), user_code(problem, "forward_pass"):
            x = problem.forward_pass.extract_model_inputs(batch)
            problem.forward_pass.model_call(network, x, problem.device)
    finally:
        handle.remove()
        network.train(was_training)
    if not given:
        raise InputError(f"{problem.label}: forward_pass: model_call does not call the model")
    return given[0]


class RandomOrder:
    """Reads the samples of a split in a random order: any part of it tells of the whole.

    Splits are often sorted by class, and their first samples tell of some classes only.

    Args:
        count: samples of the split.
        read: returns the batches of some samples, by their indices.
        seed: of the order.
    """

    def __init__(self, count: int, read: Callable[[Array], Iterable[Any]], seed: int) -> None:
        self.indices: Array = random_generator(seed, count).permutation(count)
        self._read = read

    @classmethod
    def of(cls, loader: Any, seed: int) -> RandomOrder | None:
        """Return the random order of a split; None where its samples cannot be picked."""
        if isinstance(loader, Inputter):
            if loader.shuffle:
                return None
            return cls(loader.num_samples, partial(_picked, loader), seed)
        from torch.utils.data import DataLoader, SequentialSampler

        if type(loader) is not DataLoader or loader.batch_size is None:
            return None
        if not isinstance(loader.sampler, SequentialSampler):
            return None
        return cls(len(loader.sampler), partial(_subset, loader), seed)

    def parts(self, fractions: Sequence[float]) -> Iterator[tuple[Array, Iterable[Any]]]:
        """Yield indices and batches of parts, the last of which is what is left."""
        start = 0
        for fraction in (*fractions, 1.0):
            end = start + max(1, round(fraction * len(self.indices)))
            chosen = self.indices[start:end]
            if len(chosen):
                yield chosen, self._read(chosen)
            start = end


def _picked(loader: Inputter, indices: Array) -> Iterator[Any]:
    for start in range(0, len(indices), loader.batch_size):
        arrays = loader.read(indices[start : start + loader.batch_size], None)
        convert = loader.convert
        yield tuple(arrays) if convert is None else tuple(map(convert, arrays))


def _subset(loader: Any, indices: Array) -> Iterable[Any]:
    from torch.utils.data import DataLoader, Subset

    return DataLoader(
        Subset(loader.dataset, indices.tolist()),
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )
