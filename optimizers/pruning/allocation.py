"""Chooses the widths of all groups at once: what costs most for the smallest rise of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .cost import Kept
from .graph import ChannelGroup
from .sensitivity import Sensitivity

_MOVES = 32
"""Moves that a group's width is cut into."""


def allocate(
    groups: Sequence[ChannelGroup],
    curves: Mapping[str, Sensitivity],
    cost: Callable[[Kept], float],
    saved: Callable[[Kept, str, int], float],
    ratio: float,
    *,
    most: float = 0.5,
    align: int = 1,
    check: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Return how many channels of each group stay so that the cost falls by a ratio.

    Greedy: the move that saves most for the rise of the loss that it adds is made, again and again
    (the rises of different groups are added up). It ends when the cost is low enough, or when no
    group may lose more.

    Args:
        groups: the groups.
        curves: the sensitivity of each.
        cost: of the network, by the number of channels that stay.
        saved: how much of the cost goes when one group, by name, gets another width.
        ratio: of the cost before to that after.
        most: the largest part of a group's channels that may go at once: beyond it nothing was
            learned from what is left.
        align: filters that the number of kept ones should be a multiple of, a power of 2; what
            hardware likes. Groups of fewer than twice as many take a smaller one.
        check: called before each move; may raise to end it.
    """
    kept = {group.name: group.channels for group in groups}
    start = cost(kept)
    target = start / ratio
    noise = 1e-3 * max((max(curve.rises) for curve in curves.values()), default=0.0) + 1e-12
    now = start
    while now > target:
        check()
        best: tuple[float, str, int, float] | None = None
        for group in groups:
            width = _next_width(group, kept[group.name], most, align)
            if width is None:
                continue
            gone = saved(kept, group.name, width)
            if gone <= 0:
                continue
            curve = curves[group.name]
            rise = curve(1 - width / group.channels) - curve(1 - kept[group.name] / group.channels)
            gain = gone / (rise + noise * (kept[group.name] - width) / group.channels)
            if best is None or gain > best[0]:
                best = gain, group.name, width, gone
        if best is None:
            break
        _, name, width, gone = best
        now -= gone
        kept[name] = width
    return kept


def _next_width(group: ChannelGroup, kept: int, most: float, align: int) -> int | None:
    """Return the width after the next move, or None when the group may lose no more."""
    floor = max(1, math.ceil(group.channels * (1 - most)))
    width = kept - max(1, round(group.channels / _MOVES))
    filters = group.channels * group.granularity
    while align > 1 and filters < 2 * align:
        align //= 2
    step = align // math.gcd(align, group.granularity)
    if step > 1:
        width = width // step * step
        floor = math.ceil(floor / step) * step
    width = max(width, floor) if kept > floor else width
    return width if floor <= width < kept else None
