"""The search: which layers get how many bits, within delta."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..journal import Record
from ..statistics import is_within
from .allocation import allocate_bits
from .layers import QuantLayer
from .plan import FLOAT, INT8, Plan, Precision, weight_bytes
from .rules import FORMAT_BITS, Choice, precision_of
from .trials import Trials, parse_plan, told

_LONGER = 2.0
"""A trained candidate whose drop is up to this many times delta is trained once more."""
_SMALLER = 0.97
"""Part of the bytes of what was found below which another candidate is worth a training."""
LITTLE_LARGER = 1.25
"""Quantized activations may make a file larger by this factor: they are what makes it fast."""
_MOSTLY_NODES = 0.6
"""Part of a file that is no weight from which on weights alone are tried."""
_CLOSE = 1.05
"""Two noises whose ratio is at most this are as good as the same."""
_BOLD = 2 / 3
"""How far a trained candidate goes (in decibels) of the way from what is known to be possible to
the fewest bits: training recovers most of what rounding loses."""
_STEPS = 6
"""Bisections of the noise that is permitted, without training."""
TRAININGS = 4
"""Candidates that are trained at most."""

Move = tuple[str, Precision]
"""A layer, and the higher precision that it goes to."""


class QuantizationSearch:
    """Searches the smallest, or fastest, precisions within delta.

    It is a function of its journal: :meth:`run` makes the same decisions when it is resumed.

    Args:
        trials: makes candidates.
        choice: what the user's rules leave to the search.
        check: raises when the search has to end.
    """

    def __init__(self, trials: Trials, choice: Choice, check: Callable[[], None]) -> None:
        self.trials = trials
        self.choice = choice
        self.settings = trials.settings
        self._check = check
        self._trains = trials.services.train is not None and self.settings.epochs > 0

    def run(self) -> None:
        """Search until it has converged.

        Raises:
            StopSearch: the budget is spent, or somebody asked to end it.
        """
        if self.settings.dry_run:
            free = precision_of(8 if self.settings.bits == "mixed" else int(self.settings.bits))
            self.trials.make({**self.choice.fixed, **{x.name: free for x in self.choice.free}})
        elif not self.choice.free:
            self._given()
        elif self.settings.bits == "8" or (self.settings.bits == "mixed" and self.settings.is_fast):
            self._int8()  # fewer bits save no time
        else:
            self._low_bits()

    def noise(self, options: Iterable[Precision]) -> dict[str, dict[Precision, float]]:
        """Return the noise of each free layer at some precisions; measured once, then read."""
        journal = self.trials.journal
        wanted = sorted(set(options))
        name = ",".join(map(str, wanted))
        record = journal.find("noise", name)
        if record is None:
            self.trials.services.report("measuring how much each layer matters")
            with self.trials.services.timed("other"):
                found = self.trials.candidates.noise(
                    {layer.name: wanted for layer in self.choice.free}
                )
            self._check()
            values = {
                layer: {str(precision): value for precision, value in row.items()}
                for layer, row in found.items()
            }
            elapsed = self.trials.budget.elapsed
            record = journal.append("noise", name, values=values, elapsed=elapsed)
        parsed = {str(precision): precision for precision in wanted}
        return {
            layer: {parsed[text]: float(value) for text, value in row.items()}
            for layer, row in record["values"].items()
        }

    def _given(self) -> None:
        """Try what the user chose for every layer: it is theirs to change."""
        found = self.trials.make(dict(self.choice.fixed), limit=math.inf)
        if found["status"] == "missed" and self._trains and self._is_low(self.choice.fixed):
            self._train(self.choice.fixed)

    def _is_low(self, plan: Plan) -> bool:
        return any(precision.weight < 8 for precision in plan.values())

    # 8 bits -------------------------------------------------------------------------------------

    def _int8(self) -> None:
        free = self.choice.free
        base = {**self.choice.fixed, **{layer.name: INT8 for layer in free}}
        if self.settings.is_fast:
            base = self._without_slow_kinds(base)
        first = self.trials.make(base, limit=math.inf)
        best: Plan | None = base
        if first["status"] != "accepted":
            best = self._raise_layers(base)
        if best is not None and not self.settings.is_fast:
            self._try_weights_only(best)

    def _try_weights_only(self, best: Plan) -> None:
        """Leave all activations float where their nodes are what most of a small file is."""
        found = self._last_with(best)
        plan = {name: Precision(value.weight) for name, value in best.items()}
        structure = found["size_bytes"] - self._bytes(best)
        if plan != best and structure > _MOSTLY_NODES * found["size_bytes"]:
            self.trials.make(plan)

    def _raise_layers(self, base: dict[str, Precision]) -> Plan | None:
        """Give layers a higher precision, the most sensitive first, as few as delta asks for."""
        moves = self._moves()
        # The last prefix makes all of it float again: that is the reference, and no candidate.
        low, high = 0, len(moves)
        found: Plan | None = None
        # Float activations cost no byte: is anything more needed?
        middle = high // 2 if self.settings.is_fast else len(self.choice.free)
        while high - low > 1:
            plan = _moved(base, moves[:middle])
            status = self.trials.make(plan)["status"]
            if status == "accepted":
                high, found = middle, plan
            elif status == "larger":  # and more of them would make it larger still
                high = middle
            else:
                low = middle
            middle = (low + high) // 2
        if found is None:
            return None
        return self._trimmed(base, moves[:high], found)

    def _moves(self) -> list[Move]:
        """Return every step to a higher precision, in the order in which they are taken."""
        if self.settings.is_fast:
            steps = [(INT8, FLOAT)]
        else:
            steps = [
                (INT8, Precision(8)),
                (Precision(8), Precision(16)),
                (Precision(16), FLOAT),
            ]
        noise = self.noise(before for before, _ in steps if before.weight == 8)
        moves: list[Move] = []
        ranked = _ranked(self.choice.free, noise, INT8)
        for before, after in steps:
            if before in next(iter(noise.values())):
                ranked = _ranked(self.choice.free, noise, before)
            moves += [(layer.name, after) for layer in ranked]
        return moves

    def _trimmed(self, base: dict[str, Precision], moves: Sequence[Move], found: Plan) -> Plan:
        """Take back moves that are not needed, in halves: the least sensitive ones first."""
        kept = list(moves)
        waiting = [kept[:-1]] if len(kept) > 1 else []
        while waiting:
            part = waiting.pop()
            if len(part) > 1:
                first, second = part[: len(part) // 2], part[len(part) // 2 :]
                waiting += [first]
                part = second
            if self.trials.budget.evaluations >= self.trials.budget.max_evaluations:
                break
            rest = [move for move in kept if move not in part]
            plan = _moved(base, rest)
            if plan == found:
                kept = rest
                continue
            if self.trials.make(plan)["status"] == "accepted":
                kept, found = rest, plan
            elif len(part) > 1:
                waiting.append(part)
        return found

    def _without_slow_kinds(self, plan: dict[str, Precision]) -> dict[str, Precision]:
        """Leave the kinds of layers float for which integers are measured to be slower."""
        before, path = (
            self.trials.folder / f"{name}.probe.{self.settings.format}" for name in ("best", "next")
        )
        self.trials.candidates.write(plan, before)
        for number, kind in enumerate(_kinds(self.choice.free)):
            changed = {**plan, **dict.fromkeys(kind, FLOAT)}
            if all(value.is_float for value in changed.values()):
                continue
            self._check()
            self.trials.candidates.write(changed, path)
            if self.trials.faster(f"kind {number}", path, before):
                plan = changed
                path.replace(before)
        for probe in (before, path):
            probe.unlink(missing_ok=True)
        return plan

    def _last_with(self, plan: Plan) -> Record:
        wanted = told(plan)
        records = [
            record
            for record in self.trials.journal.records
            if record["kind"] == "trial" and record["plan"] == wanted
        ]
        return records[-1]

    # Fewer than 8 bits --------------------------------------------------------------------------

    def _low_bits(self) -> None:
        least = 2 if self.settings.bits == "mixed" else int(self.settings.bits)
        widths = [bits for bits in FORMAT_BITS[self.settings.format] if bits >= least]
        options = [self._option(bits) for bits in widths]
        noise = self.noise(options)
        smallest = self._allocated(noise, math.inf)
        eight = {layer.name: self._option(8) for layer in self.choice.free}
        low, high = _total(noise, eight), _total(noise, smallest)
        best = self._bisected(noise, smallest, low, high)
        last = self.trials.last
        if last is not None and last["status"] == "slower":
            return  # which no training changes
        if self._trains and (
            best is None or best["plan"] != told({**self.choice.fixed, **smallest})
        ):
            self._trained_bisection(noise, smallest, best, low, high)

    def _option(self, bits: int) -> Precision:
        """Return the precision for a number of bits, beside layers of fewer than 8."""
        if self.settings.is_fast:
            return precision_of(bits, True)
        return Precision(bits)  # activations in 8 bits would make it worse, and no smaller

    def _allocated(
        self, noise: Mapping[str, Mapping[Precision, float]], budget: float
    ) -> dict[str, Precision]:
        named = {layer.name: layer for layer in self.choice.free}
        if math.isinf(budget):
            return {
                name: min(row, key=lambda option: (weight_bytes(named[name], option), row[option]))
                for name, row in noise.items()
            }
        return allocate_bits(
            self.choice.free,
            noise,
            lambda name, precision: float(weight_bytes(named[name], precision)),
            budget,
        )

    def _bisected(
        self,
        noise: Mapping[str, Mapping[Precision, float]],
        smallest: Plan,
        low: float,
        high: float,
    ) -> Record | None:
        """Find out how much noise delta permits: predict, measure, correct, predict again."""
        first = self.trials.make({**self.choice.fixed, **smallest}, limit=math.inf)
        if first["status"] == "accepted" or low >= high:
            return first if first["status"] == "accepted" else None
        if first["status"] == "slower":  # and more bits save no time
            return None
        best: Record | None = None
        tried = {_key(first["plan"])}
        for _ in range(_STEPS):
            if high <= low * _CLOSE:
                break
            budget = math.sqrt(low * high)
            plan = {**self.choice.fixed, **self._allocated(noise, budget)}
            if _key(told(plan)) in tried:  # nothing lies between
                high = budget
                continue
            tried.add(_key(told(plan)))
            found = self.trials.make(plan)
            if found["status"] == "accepted":
                low, best = budget, found
            else:
                high = budget
        if best is None:  # 8 bits everywhere, and then 16, which are only smaller
            for bits in (8,) if self.settings.is_fast else (8, 16):
                plan = {layer.name: self._option(bits) for layer in self.choice.free}
                found = self.trials.make({**self.choice.fixed, **plan})
                if found["status"] == "accepted":
                    return found
        return best

    def _trained_bisection(
        self,
        noise: Mapping[str, Mapping[Precision, float]],
        smallest: Plan,
        best: Record | None,
        low: float,
        high: float,
    ) -> None:
        """Go below what rounding alone reaches: the same bisection, with training."""
        if best is not None:
            low = max(low, _total(noise, parse_plan(best["plan"])))
        size = math.inf if best is None else self._bytes(parse_plan(best["plan"]))
        tried: set[str] = set()
        plan: Plan | None = {**self.choice.fixed, **smallest}
        budget = high
        if self.settings.bits == "mixed":  # a uniform width is tried as it is
            plan, budget = self._bolder(noise, low, high, size, tried)
        for _ in range(TRAININGS):
            if plan is None:
                return
            tried.add(_key(told(plan)))
            if self._train(plan)["status"] == "accepted":
                size, low = self._bytes(plan), budget
            else:
                high = budget
            plan, budget = self._bolder(noise, low, high, size, tried)

    def _bolder(
        self,
        noise: Mapping[str, Mapping[Precision, float]],
        low: float,
        high: float,
        size: float,
        tried: set[str],
    ) -> tuple[Plan | None, float]:
        """Return a plan that is smaller than what was found, and its noise; None when none is."""
        while high > low * _CLOSE:
            budget = low * (high / low) ** _BOLD
            plan = {**self.choice.fixed, **self._allocated(noise, budget)}
            if self._bytes(plan) > _SMALLER * size:
                low = budget
            elif _key(told(plan)) in tried:
                high = budget
            else:
                return plan, budget
        return None, high

    def _bytes(self, plan: Plan) -> float:
        layers = self.trials.candidates.layers
        return float(sum(weight_bytes(layer, plan.get(layer.name, FLOAT)) for layer in layers))

    def _train(self, plan: Plan) -> Record:
        """Train a candidate; one that missed by little is trained once more."""
        limit = _LONGER * self.settings.delta
        found = self.trials.make(plan, limit=limit, train=True)
        drop = found["drop"]
        if found["status"] == "missed" and drop is not None and is_within(drop, limit):
            again = self.trials.make(plan, limit=limit, train=True, parent=found["name"])
            return again if again["drop"] is not None else found
        return found


def _ranked(
    layers: Sequence[QuantLayer],
    noise: Mapping[str, Mapping[Precision, float]],
    precision: Precision,
) -> list[QuantLayer]:
    """Return layers, the most sensitive first."""
    return sorted(layers, key=lambda layer: (-noise[layer.name][precision], layer.index))


def _moved(base: Plan, moves: Sequence[Move]) -> dict[str, Precision]:
    return {**base, **dict(moves)}


def _kinds(layers: Sequence[QuantLayer]) -> list[list[str]]:
    """Return the names of layers that run in kernels of one kind."""
    kinds: dict[Any, list[str]] = {}
    for layer in layers:
        kind = (layer.op_type, layer.is_grouped, layer.is_pointwise, layer.index == 0)
        kinds.setdefault(kind, []).append(layer.name)
    return [kinds[kind] for kind in sorted(kinds)] if len(kinds) > 1 else []


def _total(noise: Mapping[str, Mapping[Precision, float]], plan: Plan) -> float:
    return math.fsum(row[plan[name]] for name, row in noise.items() if plan[name] in row)


def _key(told: Mapping[str, str]) -> str:
    return repr(sorted(told.items()))
