"""What a search is given: its settings, the reference, and services of the layers above."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..phases import TimesPhases
from ..statistics import Array, Metric
from .modules import Inputs

if TYPE_CHECKING:
    from torch import nn

    from ...training.options import TrainerOptions
    from .recipe import Recipe
    from .recovery import Recovered
    from .samples import RandomOrder

Target = Literal["size", "latency"]


@dataclass(frozen=True)
class SearchSettings:
    """What the search is asked for.

    Attributes:
        target: ``size`` or ``latency``.
        delta: the permitted drop of the metric, in its own range.
        level: 2 takes about twice the time.
        deepsearch: end closer to delta.
        exclude: patterns of groups or layers that stay as they are.
        eval_split: the split that is measured on.
        seed: of everything that is random.
        dry_run: walk through everything on two batches.
    """

    target: Target = "size"
    delta: float = 1.0
    level: int = 1
    deepsearch: bool = False
    exclude: tuple[str, ...] = ()
    eval_split: str = "test"
    seed: int = 0
    dry_run: bool = False


@dataclass
class Reference:
    """The network that was given, as the search compares with it.

    Attributes:
        network: in eval mode, with its weights; never changed.
        inputs: random arguments for it.
        metric: the one that counts.
        value: of the metric, of the network itself.
        per_sample: its results of single samples, in the order of the split.
        order: a random order of the split, in which candidates are measured, so that they can be
            sent away early; None where that cannot be.
    """

    network: nn.Module
    inputs: Inputs
    metric: Metric
    value: float
    per_sample: Array | None = None
    order: RandomOrder | None = None


@dataclass
class Services(TimesPhases):
    """What the search needs from above.

    Attributes:
        count: parameters, multiply-accumulates, and the latter by layer, of a network.
        latency: median time in ms of a network, and whether it is slower than another one; None
            where time does not count.
        report: gets a line for each thing that happens.
        external_loop: the user's own trainer.
        trainer: trains a candidate elsewhere, by its name, recipe, weights at the start, where the
            weights go, options, and a folder for checkpoints; None trains here.
    """

    count: Callable[[Any], tuple[int, int | None, Mapping[str, int]]]
    latency: Callable[[Any, Any], tuple[float, bool]] | None = None
    report: Callable[[str], None] = lambda line: None
    external_loop: Any = None
    trainer: Callable[[str, Recipe, Path, Path, TrainerOptions, Path], Recovered] | None = None
    phases: dict[str, float] = field(default_factory=dict)
