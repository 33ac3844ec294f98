"""What a search needs of the data: batches to calibrate on, and arguments of the network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...training.inputter import Inputter
from ...training.problem import Problem
from ...training.randomness import seed_everything
from ...training.runner import batch_size_of
from .modules import Inputs, map_tensors

if TYPE_CHECKING:
    from torch import nn

SAMPLES = 256
"""Training samples that sensitivities are measured on."""
_EXAMPLES = 2
"""Samples that the network is traced with: a batch of 1 hides what depends on the batch."""


def calibration_batches(problem: Problem, seed: int, samples: int = SAMPLES) -> list[Any]:
    """Return the first batches of the training split, of about so many samples.

    Raises:
        InputError: the split gives none.
    """
    seed_everything(seed, 0, 0)
    loader = problem.split("train", "data.splits")
    batches = loader.batches(0) if isinstance(loader, Inputter) else iter(loader)
    found: list[Any] = []
    count = 0
    for batch in batches:
        found.append(batch)
        count += batch_size_of(batch)
        if count >= samples:
            break
    close = getattr(batches, "close", None)
    if close is not None:
        close()
    if not found:
        raise InputError(f"{problem.label}: the split 'train' gave no batch")
    return found


def example_inputs(problem: Problem, network: nn.Module, batch: Any, seed: int) -> Inputs:
    """Return random arguments of the network, like those that the forward pass makes of a batch.

    Whole numbers (tokens, masks) are those of the batch.

    Raises:
        InputError: the forward pass does not call the network.
    """
    import torch

    given: list[Inputs] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        given.append((args, kwargs))

    handle = network.register_forward_pre_hook(keep, with_kwargs=True)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            x = problem.forward_pass.extract_model_inputs(batch)
            problem.forward_pass.model_call(network, x, problem.device)
    finally:
        handle.remove()
        network.train(was_training)
    if not given:
        raise InputError(f"{problem.label}: forward_pass: model_call does not call the model")
    generator = torch.Generator().manual_seed(seed)

    def example(tensor: torch.Tensor) -> torch.Tensor:
        part = tensor.detach()[:_EXAMPLES] if tensor.ndim else tensor.detach()
        if not part.is_floating_point():
            return part.clone()
        values = torch.randn(part.shape, generator=generator, dtype=torch.float32)
        return values.to(part.device, part.dtype)

    args, kwargs = given[0]
    return map_tensors(tuple(args), example), map_tensors(kwargs, example)


class Parts:
    """Iterates over a split in several parts, so that work can end after each.

    Args:
        loader: the batches.
        sizes: batches of each part; the last part gets what is left.
    """

    def __init__(self, loader: Any, sizes: list[int]) -> None:
        self._batches = iter(loader)
        self._sizes = sizes

    def __iter__(self) -> Iterator[list[Any]]:
        for size in self._sizes[:-1]:
            part = list(islice(self._batches, size))
            if not part:
                return
            yield part
        rest = list(self._batches)
        if rest:
            yield rest
