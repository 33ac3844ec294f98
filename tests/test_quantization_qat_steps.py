"""Learned step sizes against their paper, and weights of a graph against a network's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.optimizers.quantization.qat_matching import TrainedWeight, fit
from ingot.optimizers.quantization.qat_steps import first_steps, learned_steps
from ingot.optimizers.quantization.weights import dequantize


def test_gradients_are_those_of_the_paper() -> None:
    weight = torch.tensor([[0.2, -0.7, 3.0, -0.05], [0.5, 0.5, -4.0, 1.0]], requires_grad=True)
    steps: Any = learned_steps(weight, 7, 0)
    with torch.no_grad():
        steps.step.copy_(torch.tensor([0.1, 0.2]))
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 0.5, 1.0, 2.0]])
    steps(weight).backward(upstream)

    scaled = weight.detach() / torch.tensor([[0.1], [0.2]])
    inside = scaled.abs() <= 7
    by_step = torch.where(inside, scaled.round() - scaled, 7 * scaled.sign())  # equation 3
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream * inside)  # equation 5
    expected = (upstream * by_step).sum(1) / (4 * 7) ** 0.5  # section 2.2
    assert torch.allclose(steps.step.grad, expected)


@pytest.mark.parametrize("limit", [1, 7, 64, 127])
def test_the_first_steps_have_the_least_error(limit: int) -> None:
    rows = np.random.default_rng(limit).normal(size=(6, 200)).astype(np.float32)
    rows[5] = 0

    def error(steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        scaled = rows / steps[:, None]
        return np.square(np.clip(np.rint(scaled), -limit, limit) * steps[:, None] - rows).sum(1)

    found = first_steps(rows, limit, 0)
    assert found.dtype == np.float32
    assert (found > 0).all()
    if limit < 64:  # 8 bits keep the whole range
        tried = np.stack([error(found * np.float32(factor)) for factor in np.linspace(0.3, 3, 91)])
        assert (error(found) <= tried.min(0) * 1.01).all()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(3, 4), (4, 4), (4, 3, 3), (2, 1, 3, 3)]),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_a_fit_is_found_whatever_the_factors(
    shape: tuple[int, ...], seed: int, transposed: bool
) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(-7, 8, shape).astype(np.int8)
    scale = random.uniform(0.01, 1, shape[0]).astype(np.float32)
    trained = TrainedWeight(values, scale, 4, "layer.weight", 0)
    factors = random.choice([-3.0, -1e-3, 0.0, 0.5, 1.0, 40.0], shape[0]).astype(np.float32)
    in_graph = dequantize(trained, 0) * factors.reshape(-1, *[1] * (len(shape) - 1))
    if transposed and len(shape) == 2:
        in_graph = in_graph.T
    axis = int(transposed and len(shape) == 2)
    found = fit(in_graph, axis, dequantize(trained, 0))
    assert found is not None
    used = values.reshape(shape[0], -1).any(1)
    if shape[0] != shape[-1]:
        assert found.channel_axis == 0
        assert np.allclose(found.factors[used], factors[used], rtol=1e-5)


def test_another_weight_does_not_fit() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3, 3, 3))
    assert fit(weight, 0, random.normal(size=(4, 3, 3, 3))) is None
    assert fit(weight, 0, weight * np.arange(1, 4)[None, :, None, None]) is None
    assert fit(weight, 0, random.normal(size=(4, 3, 5, 5))) is None
