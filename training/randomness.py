"""The random generators of Python, NumPy and PyTorch: seeded, saved, and kept apart."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from .inputter import random_generator

DATA_SEED = 0
"""Seed of the generators while splits are made: one for every command, run and worker.

It is not ``--seed``, or what is held out at random would not be held out by the next command.
"""


def seed_everything(*seeds: int) -> None:
    """Seed the generators with what belongs to some integers; PyTorch's where it is imported."""
    drawn = [int(item) for item in random_generator(*seeds).integers(0, 2**32, 3)]
    random.seed(drawn[0])
    np.random.seed(drawn[1])
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(drawn[2])


def random_state() -> dict[str, Any]:
    """Return the state of the generators of Python and NumPy, and PyTorch's if it is imported."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        state["torch"] = torch.get_rng_state()
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the random generators into a state that :func:`random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch: Any = sys.modules.get("torch")
    if torch is not None and "torch" in state:
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


class RandomStream:
    """Generators of its own, which stand in for the global ones within its context (on the CPU).

    A loader that draws from them draws the same whatever the network draws between two batches:
    on every worker, and when its batches are run through again to resume.

    Args:
        seeds: what they are seeded with.
    """

    def __init__(self, *seeds: int) -> None:
        self._torch: Any = sys.modules.get("torch")
        self._inside: Any = (random.getstate(), np.random.MT19937(), self._of_torch())
        self._outside: Any = None
        with self:
            seed_everything(*seeds)

    def __enter__(self) -> None:
        self._outside = self._swapped(self._inside)

    def __exit__(self, *exception: object) -> None:
        self._inside = self._swapped(self._outside)

    def _swapped(self, state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        # A state of NumPy's is slow to copy, so that the whole generator is exchanged.
        found = np.random.get_bit_generator()  # type: ignore[attr-defined]
        previous = (random.getstate(), found, self._of_torch())
        random.setstate(state[0])
        np.random.set_bit_generator(state[1])  # type: ignore[attr-defined]
        if self._torch is not None:
            self._torch.set_rng_state(state[2])
        return previous

    def _of_torch(self) -> Any:
        return None if self._torch is None else self._torch.get_rng_state()
