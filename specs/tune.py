"""The section ``tune``: which keys of the spec a search draws, and from what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from ..errors import SpecError
from .canonical import canonicalise
from .declare import Rule, Section, key
from .nodes import Node
from .parsing import Parser
from .reading import read_tree
from .yaml_text import parse_yaml

SUITE_NAMES = {
    "batch_size_per_gpu": "training.batch_size",
    "epochs": "full_trainer.epochs",
    "l2_weight_decay": "training.weight_decay",
    "learning_rate": "full_trainer.optimizer.lr",
    "optimizer": "full_trainer.optimizer.name",
    "piecewise_boundaries": "full_trainer.scheduler.boundaries",
    "piecewise_lr_decay": "full_trainer.scheduler.decay",
    "piecewise_learning_rate_decay": "full_trainer.scheduler.decay",
    "skip_l2_loss_vars": "training.weight_decay_skip",
    "trainable_vars": "training.trainable",
}
"""What the options of Lambda's suite are called in a spec."""

_SCHEDULER = "full_trainer.scheduler"
_KINDS = ("choice", "integer", "log_integer", "log_uniform", "uniform")


@dataclass(frozen=True)
class ParameterSection(Section):
    """What a parameter is drawn from: one of a range and a choice; a list is a choice."""

    also: ClassVar[tuple[dict[str, Any], ...]] = ({"type": "array"}, {"type": "string"})

    log_uniform: tuple[float, float] | None = key(
        Rule("Lowest and highest value; every power of ten is as likely.", aliases=("loguniform",)),
        default=None,
    )
    uniform: tuple[float, float] | None = key("Lowest and highest value.", default=None)
    log_integer: tuple[int, int] | None = key(
        Rule("Like `log_uniform`, whole numbers.", aliases=("log_int",)), default=None
    )
    integer: tuple[int, int] | None = key(
        Rule("Lowest and highest value, whole numbers.", aliases=("int",)), default=None
    )
    choice: tuple[Any, ...] | None = key(
        Rule("The values that it may have.", min_items=1), default=None
    )

    @property
    def kind(self) -> str:
        """Which of the keys is given."""
        return next(name for name in _KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """Lowest and highest value of a range; all values of a choice."""
        found: tuple[Any, ...] = getattr(self, self.kind)
        return found

    @classmethod
    def prepare(cls, node: Node) -> Node:
        """Read a list, and text with commas as the suite has it, as a choice."""
        if isinstance(node.value, str):
            return node.with_value({"choice": _split(node)})
        return node.wrapped("choice") if isinstance(node.value, list) else node

    def checked(self, node: Node) -> Self:
        """Check that there is one way to draw it, and values to draw."""
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise node.error(
                f"found {' and '.join(given) or 'nothing to draw from'}; expected one of"
                f" {', '.join(_KINDS)}"
            )
        if self.kind == "choice":
            if any(value in self.values[:place] for place, value in enumerate(self.values)):
                raise node.error("found a value twice; expected each once")
            return self
        low, high = self.values
        if low >= high:
            raise node.at(self.kind).error(
                f"found {[low, high]}; expected the lowest value, then the highest"
            )
        if self.kind.startswith("log") and low <= 0:
            raise node.at(self.kind).error(f"found {[low, high]}; expected values above 0")
        return self


@dataclass(frozen=True)
class TuneSection(Section):
    """What ``ingot tune`` searches."""

    trials: int = key(Rule("Number of trials.", minimum=1, aliases=("num_trials",)), default=20)
    fixed: dict[str, Any] = key(
        Rule(
            "Keys of the spec, with dots, and the value that all trials have.",
            aliases=("fixedparams",),
        ),
        default_factory=dict,
    )
    parameters: dict[str, ParameterSection] = key(
        "Keys of the spec, with dots, and what each trial draws them from.", default_factory=dict
    )
    hyperparams: dict[str, Any] = key(
        "The suite's spelling of `parameters`: `generate` (powers of ten) and `select`.",
        default_factory=dict,
    )
    sampler: Literal["tpe", "random"] = key(
        "How values are drawn: by what earlier trials found, or at random.", default="tpe"
    )
    pruner: Literal["median", "none"] = key(
        "What ends a trial early: to be worse than the median of the others.", default="median"
    )

    @classmethod
    def prepare(cls, node: Node) -> Node:
        """Bring the suite's form into this one; doing it again changes nothing."""
        if not isinstance(node.value, dict):
            return node
        values = dict(node.value)
        suite = values.pop("hyperparams", None)
        if suite is not None and suite.value:
            drawn = dict(_suite_parameters(suite))
            own = values.get("parameters")
            if own is not None and own.value:
                raise suite.error("found it beside 'parameters'; expected one of them")
            values["parameters"] = suite.with_value(drawn)
        for name in ("fixed", "fixedparams"):
            if name in values and isinstance(values[name].value, dict):
                values[name] = values[name].with_value(_suite_fixed(values[name]))
        return node.with_value(values)

    def checked(self, node: Node) -> Self:
        """Check that no key is fixed and drawn."""
        for name in self.parameters:
            if name in self.fixed:
                raise node.at("parameters").error(
                    f"{name!r} is fixed and drawn; expected one of them"
                )
        for name in (*self.fixed, *self.parameters):
            if name.partition(".")[0] in ("tune", "problem", "format_version"):
                raise node.error(f"found {name!r}, which no trial can change")
        return self


def load_space(path: str | Path) -> TuneSection:
    """Load what a spec has in its section ``tune`` from a file of its own.

    Raises:
        SpecError: the file cannot be read, or is invalid; it names file, line and key.
    """
    return Parser().section(canonicalise(read_tree(Path(path)), TuneSection), TuneSection)


def _suite_parameters(node: Node) -> dict[str, Node]:
    """Read ``{generate: {learning_rate: "-4,-2"}, select: {optimizer: "sgd,adam"}}``."""
    if not isinstance(node.value, dict):
        raise node.wrong("a mapping")
    children = node.value
    if not children.keys() <= {"generate", "select"}:  # its early form: choices alone
        return {_own_name(name): child for name, child in children.items()}
    found: dict[str, Node] = {}
    for kind, section in children.items():
        if section.value is None:
            continue
        if not isinstance(section.value, dict):
            raise section.wrong("a mapping of parameters")
        for name, child in section.value.items():
            found[_own_name(name)] = child if kind == "select" else _powers_of_ten(child)
    return found


def _own_name(name: str) -> str:
    return SUITE_NAMES.get(name, name)


def _powers_of_ten(node: Node) -> Node:
    values = _split(node).plain()
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not are_numbers:
        raise node.wrong('two powers of ten, such as "-4,-2"')
    limits = [float(f"1e{value:g}") if value == int(value) else 10.0**value for value in values]
    if not all(0 < limit < math.inf for limit in limits):
        raise node.wrong("powers of ten that are numbers")
    children = [node.with_value(limit) for limit in limits]
    return node.with_value({"log_uniform": node.with_value(children)})


def _suite_fixed(node: Node) -> dict[str, Node]:
    found = {_own_name(name): child for name, child in node.value.items()}
    boundaries = found.pop(f"{_SCHEDULER}.boundaries", None)
    decay = found.pop(f"{_SCHEDULER}.decay", None)
    if boundaries is None:
        return found if decay is None else {**found, f"{_SCHEDULER}.decay": decay}
    steps = _split(boundaries).plain()
    schedule: dict[str, Any] = {"name": "piecewise", "boundaries": steps}
    if decay is not None:
        factors = _split(decay).plain()
        try:
            schedule["decay"] = decay_factors(steps, factors)
        except ValueError as error:
            raise decay.error(str(error)) from None
    return {**found, _SCHEDULER: boundaries.with_value(_nodes(boundaries, schedule))}


def decay_factors(boundaries: list[Any], shares: list[Any]) -> list[float]:
    """Return the factor at each boundary, from the shares of the first rate in each part.

    Args:
        boundaries: epochs.
        shares: one more: ``[1.0, 0.1, 0.01]`` for two boundaries.

    Raises:
        ValueError: they do not go together.
    """
    if len(shares) != len(boundaries) + 1 or not all(share > 0 for share in shares):
        raise ValueError(
            f"found {len(shares)} learning rates for {len(boundaries)} boundaries; expected one"
            " more, all above 0"
        )
    # Rounded, as 0.01 / 0.1 is not quite 0.1.
    return [float(f"{after / before:.12g}") for before, after in pairwise(shares)]


def _nodes(node: Node, values: dict[str, Any]) -> dict[str, Node]:
    found = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = [node.with_value(item) for item in value]
        found[name] = node.with_value(value)
    return found


def _split(node: Node) -> Node:
    """Return a list of values: of a list, itself; of text, what its commas part, in YAML."""
    if isinstance(node.value, list):
        return node
    if not isinstance(node.value, str):
        return node.with_value([node])
    parts = [part.strip() for part in node.value.split(",")]
    try:
        return node.with_value([node.with_value(parse_yaml(part)[0]) for part in parts])
    except SpecError:
        raise node.wrong("values with commas between them") from None
