"""How much the loss rises when channels go: measured group by group, without any training."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...training.losses import loss_parts
from ...training.problem import Problem
from .graph import ChannelGroup
from .importance import Scores, magnitude, taylor
from .masks import masked

if TYPE_CHECKING:
    from torch import nn

FRACTIONS = (0.25, 0.5)
"""Parts of a group's channels that are taken away for a measurement; no step takes more."""


@dataclass(frozen=True)
class Sensitivity:
    """The rise of the loss by the part of a group's channels that goes; it never falls.

    Attributes:
        fractions: that were measured, ascending, after 0.
        rises: of the loss, after 0.
    """

    fractions: tuple[float, ...]
    rises: tuple[float, ...]

    def __call__(self, fraction: float) -> float:
        """Return the rise between the points that were measured; beyond them it gets steeper."""
        if fraction <= 0:
            return 0.0
        index = min(bisect_right(self.fractions, fraction), len(self.fractions) - 1)
        left, right = self.fractions[index - 1], self.fractions[index]
        low, high = self.rises[index - 1], self.rises[index]
        rise = low + (high - low) * (fraction - left) / (right - left)
        beyond = max(0.0, fraction - right)
        return rise + beyond * (high / right) * 4

    @classmethod
    def of(cls, measured: Mapping[float, float]) -> Sensitivity:
        """Make one of measured rises, of which noise may let some fall."""
        fractions, rises = [0.0], [0.0]
        for fraction in sorted(measured):
            fractions.append(fraction)
            rises.append(max(measured[fraction], rises[-1], 0.0))
        return cls(tuple(fractions), tuple(rises))


def importance(
    problem: Problem, network: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Any]
) -> Scores:
    """Rank the channels of each group: by the loss's gradient, or by their size where it has none.

    The gradients that the network has are dropped.
    """
    from ...errors import UsageError

    trainable = [parameter.requires_grad for parameter in network.parameters()]
    total: Scores = {}
    try:
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with as_trained(network):
            for batch in batches:
                network.zero_grad(set_to_none=True)
                parts = list(loss_parts(problem.loss(network, batch)).values())
                sum(parts[1:], parts[0]).backward()
                for name, scores in taylor(network, groups).items():
                    total[name] = total[name] + scores if name in total else scores
    except UsageError:
        return magnitude(network, groups)
    finally:
        network.zero_grad(set_to_none=True)
        for parameter, wanted in zip(network.parameters(), trainable, strict=True):
            parameter.requires_grad_(wanted)
    return total


def least_important(scores: Any, count: int) -> list[int]:
    """Return which channels stay, ascending, when the ``count`` least important ones go."""
    order = sorted(range(len(scores)), key=lambda index: (float(scores[index]), index))
    return sorted(order[count:])


def sensitivities(
    problem: Problem,
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Scores,
    batches: Sequence[Any],
    check: Callable[[], None] = lambda: None,
) -> dict[str, Sensitivity]:
    """Measure the sensitivity of each group.

    Args:
        problem: has the loss.
        network: not changed.
        groups: its groups.
        scores: of their channels.
        batches: that the loss is measured on.
        check: called between measurements; may raise to end them.
    """
    start = mean_loss(problem, network, batches)
    found: dict[str, Sensitivity] = {}
    for group in groups:
        rises: dict[float, float] = {}
        for wanted in FRACTIONS:
            gone = min(round(wanted * group.channels), group.channels - 1)
            fraction = gone / group.channels
            if not gone or fraction in rises:
                continue
            check()
            keep = {group.name: least_important(scores[group.name], gone)}
            rises[fraction] = mean_loss(problem, masked(network, keep, groups), batches) - start
        found[group.name] = Sensitivity.of(rises)
    return found


def mean_loss(problem: Problem, network: nn.Module, batches: Sequence[Any]) -> float:
    """Return the mean loss of batches, with the statistics and dropout of eval mode.

    What is random all the same (a dropout that is no layer) is so in the same way each time: losses
    are compared with each other.
    """
    import torch

    total = 0.0
    devices = {parameter.device for parameter in network.parameters()}
    gpus = [device for device in devices if device.type == "cuda"]
    with torch.no_grad(), as_trained(network), torch.random.fork_rng(gpus):
        torch.manual_seed(0)
        for batch in batches:
            parts = list(loss_parts(problem.loss(network, batch)).values())
            total += float(sum(parts[1:], parts[0]))
    value = total / len(batches)
    return value if value == value else float("inf")


_RANDOM = ("Norm", "Dropout", "DropPath", "StochasticDepth", "MultiheadAttention")
"""In names of layers that compute something else, or something random, when they train."""


@contextmanager
def as_trained(network: nn.Module) -> Iterator[None]:
    """Let a network return what its loss takes, but use the statistics that it has learned.

    Some networks (of detection) return something else in eval mode.
    """
    modes = {layer: layer.training for layer in network.modules()}
    network.train()
    for layer in network.modules():
        name = type(layer).__name__
        if any(part in name for part in _RANDOM):
            layer.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
