"""Precisions of all layers at once: the integer program against trying every choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.errors import ModelError
from ingot.optimizers.quantization.allocation import allocate_bits, noise_ratio
from ingot.optimizers.quantization.layers import QuantLayer
from ingot.optimizers.quantization.plan import Precision, weight_bytes

BITS = (2, 4, 8, 16, 32)


def layer(index: int, name: str, parameters: int = 1) -> QuantLayer:
    """Return a layer of one output channel."""
    shape = (1, parameters)
    return QuantLayer(index, name, "Gemm", f"node_{name}", f"{name}.weight", shape, 0, 1, ())


def layers_of(names: str) -> list[QuantLayer]:
    return [layer(index, name) for index, name in enumerate(names)]


Table = dict[str, dict[Precision, float]]
numbers = st.integers(0, 30)
tables = st.lists(
    st.dictionaries(
        st.sampled_from([Precision(bits) for bits in BITS] + [Precision(8, 8)]),
        st.tuples(numbers, numbers),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=120)
@given(tables, st.integers(0, 60), st.sampled_from([0.5, 1.0, 2.0]))
def test_it_is_the_best_of_all_choices(
    rows: list[dict[Precision, tuple[int, int]]], budget: int, scale: float
) -> None:
    names = [f"layer{n}" for n in range(len(rows))]
    named = dict(zip(names, rows, strict=True))
    noise: Table = {
        n: {p: v[0] for p, v in row.items()} for n, row in zip(names, rows, strict=True)
    }
    cost: Table = {n: {p: v[1] for p, v in row.items()} for n, row in named.items()}
    layers = [layer(index, name) for index, name in enumerate(names)]

    found = allocate_bits(layers, noise, cost, budget, scale=scale)

    def totals(choice: dict[str, Precision]) -> tuple[float, float]:
        return (
            sum(cost[name][precision] for name, precision in choice.items()),
            sum(noise[name][precision] * scale for name, precision in choice.items()),
        )

    choices = [dict(zip(names, picked, strict=True)) for picked in itertools.product(*rows)]
    within = [totals(choice) for choice in choices if totals(choice)[1] <= budget]
    assert list(found) == names
    if within:
        assert totals(found) == min(within)
    else:
        least = min(totals(choice)[::-1] for choice in choices)
        assert totals(found)[::-1] == least


def test_bytes_go_where_they_are_missed_most() -> None:
    layers = [layer(0, "small", 100), layer(1, "large", 100_000), layer(2, "sensitive", 100)]
    decibels = {"small": 12.0, "large": 12.0, "sensitive": 2.0}
    noise = {
        name: {Precision(bits): noise_ratio(first + 6 * (bits - 2)) for bits in (2, 4, 8)}
        for name, first in decibels.items()
    }
    found = allocate_bits(
        layers,
        noise,
        lambda name, p: weight_bytes(next(x for x in layers if x.name == name), p),
        0.1,
    )
    assert found["large"] == Precision(2)
    assert found["sensitive"].weight > found["small"].weight >= 2


def test_the_order_of_a_table_does_not_matter() -> None:
    layers = layers_of("abcdef")
    same = {Precision(2): 2.0, Precision(4): 1.0, Precision(8): 0.0}
    price = {Precision(2): 1.0, Precision(4): 2.0, Precision(8): 3.0}
    noise = {item.name: same for item in layers}
    turned = {item.name: dict(reversed(same.items())) for item in reversed(layers)}
    first = allocate_bits(layers, noise, lambda _, p: price[p], 5.0)
    again = allocate_bits(layers, turned, lambda _, p: price[p], 5.0)
    assert first == again
    assert sum(same[precision] for precision in first.values()) == 5.0


def test_a_choice_that_costs_nothing_more_is_the_quieter_one() -> None:
    noise = {"a": {Precision(2): 3.0, Precision(8): 1.0}}
    assert allocate_bits(layers_of("a"), noise, lambda *_: 1.0, 9.0) == {"a": Precision(8)}


def test_a_measurement_corrects_the_prediction() -> None:
    layers = layers_of("abcd")
    noise = {item.name: {Precision(2): 1.0, Precision(8): 0.0} for item in layers}

    def count(scale: float) -> int:
        found = allocate_bits(layers, noise, lambda _, p: p.weight, 3.0, scale=scale)
        return sum(precision.weight == 2 for precision in found.values())

    assert [count(0.5), count(1.0), count(1.6), count(4.0)] == [4, 3, 1, 0]


def test_what_the_user_chose_stays() -> None:
    layers = layers_of("abc")
    noise = {item.name: {Precision(2): 1.0, Precision(8): 0.25} for item in layers}
    fixed = {"b": Precision(2)}
    found = allocate_bits(layers, noise, lambda _, p: p.weight, 1.5, fixed)
    assert found == {"a": Precision(8), "b": Precision(2), "c": Precision(8)}


def test_a_budget_that_only_the_user_breaks_is_an_error_that_names_the_layer() -> None:
    layers = layers_of("abc")
    noise = {item.name: {Precision(2): 1.0, Precision(8): 0.1} for item in layers}
    noise["b"][Precision(2)] = 5.0
    fixed = {"a": Precision(2), "b": Precision(2)}
    with pytest.raises(ModelError, match=r"layer 'b'.*at least 6\.1.*at most 1") as caught:
        allocate_bits(layers, noise, lambda _, p: p.weight, 1.0, fixed)
    assert "more bits" in str(caught.value.hint)


def test_a_budget_that_nothing_keeps_gives_the_least_noise() -> None:
    noise = {"a": {Precision(2): 1.0, Precision(8): 0.5}, "b": {Precision(4): np.inf}}
    found = allocate_bits(layers_of("ab"), noise, lambda _, p: p.weight, 0.1, {"b": Precision(4)})
    assert found == {"a": Precision(8), "b": Precision(4)}


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_noise_that_is_no_noise_is_an_error(value: float) -> None:
    with pytest.raises(ModelError, match="layer 'a' at w2a32: found a noise"):
        allocate_bits(layers_of("a"), {"a": {Precision(2): value}}, lambda *_: 1.0, 1.0)


def test_a_table_with_a_hole_is_an_error() -> None:
    noise = {"a": {Precision(2): 1.0}}
    with pytest.raises(ModelError, match="layer 'b': its noise is not known"):
        allocate_bits(layers_of("ab"), noise, lambda *_: 1.0, 1.0)
    with pytest.raises(ModelError, match="layer 'a': its cost at w2a32 is not known"):
        allocate_bits(layers_of("a"), noise, {"a": {}}, 1.0)
    with pytest.raises(ModelError, match="layer 'a': its noise at w8a8 is not known"):
        allocate_bits(layers_of("a"), noise, lambda *_: 1.0, 1.0, {"a": Precision(8, 8)})


def test_a_large_network_has_no_single_step_left() -> None:
    random = np.random.default_rng(0)
    layers = [layer(n, f"layer{n}", int(random.integers(100, 10**6))) for n in range(200)]
    named = {item.name: item for item in layers}
    noise = {
        item.name: {
            Precision(bits): noise_ratio(random.normal(5 + 6 * (min(bits, 16) - 2), 4))
            for bits in BITS
        }
        for item in layers
    }
    found = allocate_bits(layers, noise, lambda name, p: weight_bytes(named[name], p), 0.1)
    assert sum(noise[name][precision] for name, precision in found.items()) <= 0.1 * (1 + 1e-6)
    spare = 0.1 - sum(noise[name][precision] for name, precision in found.items())
    for name, precision in found.items():
        for bits in BITS:
            if bits < precision.weight:
                rise = noise[name][Precision(bits)] - noise[name][precision]
                assert rise > spare
