"""Chooses the precision of every layer at once: the cheapest choice whose noise stays in a budget.

One precision a layer, costs and noise that add up over layers, and one bound: a multiple-choice
knapsack, solved exactly as a 0/1 integer program, as Hubara et al., 2020, arXiv:2006.10518 do. That
the noise of layers, quantized one at a time, adds up is an assumption of theirs, too: what it
predicts has to be measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError
from ...frameworks.base import import_framework

if TYPE_CHECKING:
    from .layers import QuantLayer
    from .plan import Precision

    Table = Mapping[str, Mapping[Precision, float]]
    """A number by name of layer and precision."""
    Cost = Table | Callable[[str, Precision], float]
    Array = np.ndarray[Any, Any]

_SLACK = 1e-9
"""Two costs, or a sum and its bound, count as equal within this part of them: rounding."""
_LARGEST = np.finfo(np.float64).max
_MOST_NODES = 1000
"""Nodes of the search tree: a bound that, unlike one in seconds, gives one answer everywhere. A
table of 200 layers takes at most some dozens."""


def noise_ratio(decibels: float) -> float:
    """Return the ratio of noise to signal (in power) of a signal-to-noise ratio in dB."""
    return float(10.0 ** (-decibels / 10.0))


@dataclass(frozen=True)
class _Option:
    precision: Precision
    noise: float
    cost: float


def allocate_bits(
    layers: Sequence[QuantLayer],
    noise: Table,
    cost: Cost,
    budget: float,
    fixed: Mapping[str, Precision] | None = None,
    *,
    scale: float = 1.0,
) -> dict[str, Precision]:
    """Return the precision of every layer that costs least, with their noise within a budget.

    Of several choices that cost the same it is the one with the least noise, so that the same
    tables always give the same answer. When no choice keeps the budget, it is the one with the
    least noise: what is measured on it decides.

    Args:
        layers: those that are decided about.
        noise: what a precision of one layer adds to the ratio of noise to signal of the output
            (linear, see :func:`noise_ratio`), by name of layer; its keys are the precisions to
            choose from. An infinite one is never chosen.
        cost: bytes or milliseconds of a layer in a precision; a table, or a function of both.
        budget: upper bound of the sum of the noise, kept to one part in a million.
        fixed: precisions that the user chose, by name of layer.
        scale: factor of all noise: that of a measurement to what was predicted, when a first
            answer was measured and the program is solved anew.

    Returns:
        precision by name, in the order of ``layers``.

    Raises:
        ModelError: the budget could be kept, but not with what ``fixed`` says; a table lacks an
            entry, or one is negative or no number.
        MissingDependencyError: SciPy is not installed.
    """
    fixed = fixed or {}
    free = {layer.name: _options(layer.name, noise, cost, scale, None) for layer in layers}
    tables = {
        name: _options(name, noise, cost, scale, fixed[name]) if name in fixed else options
        for name, options in free.items()
    }
    least = {name: min(found, key=_by_noise) for name, found in tables.items()}
    total = math.fsum(option.noise for option in least.values())
    bound = budget * (1 + _SLACK)
    if total > bound or not math.isfinite(total):
        possible = math.fsum(min(found, key=_by_noise).noise for found in free.values())
        if possible <= bound and math.isfinite(possible):
            raise _impossible(fixed, free, tables, total, budget)
        return {name: option.precision for name, option in least.items()}
    chosen = _solve(list(tables.values()), budget)
    return {name: option.precision for name, option in zip(tables, chosen, strict=True)}


def _by_noise(option: _Option) -> tuple[float, float]:
    return option.noise, option.cost


def _options(
    name: str, noise: Table, cost: Cost, scale: float, only: Precision | None
) -> list[_Option]:
    """Return what a layer may be, without what another precision beats in noise and cost."""
    if name not in noise:
        raise ModelError(f"layer {name!r}: its noise is not known; found {_names(noise)}")
    wanted = list(noise[name]) if only is None else [only]
    found = []
    for precision in sorted(wanted, key=lambda item: (item.weight, item.activation)):
        if precision not in noise[name]:
            raise ModelError(f"layer {name!r}: its noise at {precision} is not known")
        added = float(noise[name][precision]) * scale
        price = _price(cost, name, precision)
        if math.isnan(added) or added < 0 or not math.isfinite(price) or price < 0:
            raise ModelError(
                f"layer {name!r} at {precision}: found a noise of {added:g} and a cost of"
                f" {price:g}; expected numbers that are not negative"
            )
        found.append(_Option(precision, added, price))
    kept: list[_Option] = []
    for option in sorted(found, key=_by_noise):
        if not kept or option.cost < kept[-1].cost:
            kept.append(option)
    return kept


def _price(cost: Cost, name: str, precision: Precision) -> float:
    if callable(cost):
        return float(cost(name, precision))
    row = cost.get(name)
    if row is None or precision not in row:
        raise ModelError(f"layer {name!r}: its cost at {precision} is not known")
    return float(row[precision])


def _names(table: Mapping[str, Any]) -> str:
    names = sorted(table)
    return (", ".join(names[:4]) + (", ..." if len(names) > 4 else "")) or "no layer"


def _impossible(
    fixed: Mapping[str, Precision],
    free: Mapping[str, list[_Option]],
    tables: Mapping[str, list[_Option]],
    total: float,
    budget: float,
) -> ModelError:
    """Say which of the user's choices adds most noise."""

    def added(name: str) -> float:
        return tables[name][0].noise - min(option.noise for option in free[name])

    worst = max((name for name in tables if name in fixed), key=added)
    return ModelError(
        f"layer {worst!r}: at {fixed[worst].weight} bits the predicted noise is at least"
        f" {total:.3g} of the signal; expected at most {budget:.3g}",
        hint=f"give {worst!r} more bits, or leave it to the search",
    )


def _solve(tables: list[list[_Option]], budget: float) -> list[_Option]:
    """Return one option a layer: least cost within the budget, then least noise at that cost."""
    rows = [
        [option for option in found if option.noise <= min(budget * (1 + _SLACK), _LARGEST)]
        for found in tables
    ]
    costs = np.array([option.cost for row in rows for option in row])
    noises = np.array([option.noise for row in rows for option in row])
    # The solver's tolerances are absolute: one unit is the whole cost, or the whole budget.
    largest = math.fsum(max(option.cost for option in row) for row in rows) or 1.0
    parts = noises / budget if budget > 0 else noises
    cheapest = _choose(rows, costs * (1e3 / largest), [(parts, 1.0)])
    best = _total(cheapest)
    if best <= 0:
        return [min(row, key=lambda option: (option.cost, option.noise)) for row in rows]
    quietest = _choose(rows, parts, [(parts, 1.0), (costs / best, 1.0 + _SLACK)])
    same = _total(quietest) <= best * (1 + _SLACK)
    return quietest if same and _noise(quietest) < _noise(cheapest) else cheapest


def _total(options: Sequence[_Option]) -> float:
    return math.fsum(option.cost for option in options)


def _noise(options: Sequence[_Option]) -> float:
    return math.fsum(option.noise for option in options)


def _choose(
    rows: list[list[_Option]], objective: Array, bounds: Sequence[tuple[Array, float]]
) -> list[_Option]:
    """Return one option a row that minimises an objective under upper bounds (HiGHS)."""
    optimize = import_framework("scipy.optimize", "quantize")
    sparse = import_framework("scipy.sparse", "quantize")
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    columns = np.arange(len(owners))
    one_each = sparse.csr_array((np.ones(len(owners)), (owners, columns)))
    limits = [
        optimize.LinearConstraint(one_each, 1, 1),
        *(optimize.LinearConstraint(row[None], -np.inf, bound) for row, bound in bounds),
    ]
    found = optimize.milp(
        objective,
        integrality=np.ones(len(owners)),
        bounds=optimize.Bounds(0, 1),
        constraints=limits,
        options={"mip_rel_gap": 0.0, "node_limit": _MOST_NODES},
    )
    if found.x is None:
        raise ModelError(f"the integer program of the precisions was not solved: {found.message}")
    starts = np.cumsum([0, *(len(row) for row in rows)])
    return [
        row[int(np.argmax(found.x[start : start + len(row)]))]
        for row, start in zip(rows, starts[:-1], strict=True)
    ]
