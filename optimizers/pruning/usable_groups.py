"""Which groups of channels a search may use: those that stand the check."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...specs.hints import did_you_mean
from ..journal import Journal
from .graph import channel_graph
from .masks import verify_groups
from .modules import Inputs
from .search_parts import SearchSettings
from .tracing import UnprunableError

if TYPE_CHECKING:
    from torch import nn


def find_groups(
    network: nn.Module,
    inputs: Inputs,
    settings: SearchSettings,
    journal: Journal,
    report: Callable[[str], None],
) -> None:
    """Find the groups of channels, and those of them that the trace got wrong; write them down.

    Args:
        network: the reference.
        inputs: random arguments for it.
        settings: of the search.
        journal: of the search; nothing is done that it says was done.
        report: gets a line.

    Raises:
        UsageError: a pattern in ``settings.exclude`` fits nothing.
        UnprunableError: no group can be pruned.
    """
    record = journal.find("groups")
    if record is None:
        _require_matches(network, settings.exclude)
        graph = channel_graph(network, inputs, settings.exclude)
        good, wrong = verify_groups(network, graph.groups, inputs, settings.seed)
        if not good:
            name, reason = next(iter(wrong.items()))
            raise UnprunableError(
                f"no group of channels can be pruned: {name!r}: {reason}", module=name
            )
        record = journal.append(
            "groups",
            groups=[group.to_dict() for group in good],
            excluded=wrong,
            skipped=dict(graph.skipped),
        )
    count = sum(group["channels"] for group in record["groups"])
    report(f"{len(record['groups'])} groups of {count} channels can be pruned")
    for path, reason in record["skipped"].items():
        logging.getLogger("ingot").debug("%s stays as it is: %s", path, reason)
    for name, reason in record["excluded"].items():
        logging.getLogger("ingot").warning(
            "%s stays as it is: pruning it computes something else (%s)", name, reason
        )


def _require_matches(network: nn.Module, patterns: Sequence[str]) -> None:
    """Refuse a pattern that fits no layer: a typo would let the layer be pruned.

    Raises:
        UsageError: there is one.
    """
    names = [name for name, _ in network.named_modules() if name]
    names += [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"--exclude: {pattern!r} fits no layer of {type(network).__name__}",
                hint=did_you_mean(pattern, names),
            )
