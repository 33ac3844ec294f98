"""What a search of Python objects is found again by."""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest

from ingot.optimizers.fingerprint import describe
from ingot.optimizers.run_key import hash_of


class Loss:
    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.lock = threading.Lock()
        self.log = logging.getLogger("loss")
        self.itself = self

    def __call__(self, model: Any, batch: Any) -> float:
        return self.weight


class Heavier(Loss):
    def __call__(self, model: Any, batch: Any) -> float:
        return 2 * self.weight


def weighted(weight: Any) -> Any:
    def loss(model: Any, batch: Any) -> Any:
        return weight

    return loss


def call(model: Any, batch: Any, weight: float = 1.0) -> float:
    return weight


SAME = [
    lambda: Loss(1.0),
    lambda: Heavier,
    lambda: weighted(2.0),
    lambda: partial(call, weight=2.0),
    lambda: Loss(1.0).__call__,
    lambda: {"weights": np.arange(3.0), "names": {"b", "a"}, 1: (None, True)},
    lambda: weighted([np.arange(4)]),
    lambda: object(),
]


@pytest.mark.parametrize("make", SAME)
def test_the_same_object_made_twice_is_described_alike(make: Any) -> None:
    assert hash_of(describe(make())) == hash_of(describe(make()))


def test_different_objects_are_told_apart() -> None:
    found = [hash_of(describe(make())) for make in SAME]
    found += [hash_of(describe(item)) for item in (Loss(2.0), Heavier(1.0), Loss, call)]
    found += [hash_of(describe(item)) for item in (weighted(3.0), partial(call, weight=3.0))]
    found += [hash_of(describe({"weights": np.arange(3)})), hash_of(describe([np.arange(4)]))]
    assert len(set(found)) == len(found)


def test_tensors_and_modules_count_by_their_values() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert hash_of(describe(layer)) != hash_of(describe(other))
    other.load_state_dict(layer.state_dict())
    assert hash_of(describe(layer)) == hash_of(describe(other))
    half = torch.ones(2, dtype=torch.bfloat16)
    assert describe(half) == describe(half.clone())
    assert describe(half) != describe(2 * half)
