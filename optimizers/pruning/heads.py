"""Attention written as linear layers: its channels are pruned by whole heads.

A head that lost some of its channels would be scaled by another root (Vaswani et al., 2017,
arXiv:1706.03762, section 3.2.1), and would compute something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .classes import Channels
from .tracing import Trace

if TYPE_CHECKING:
    from torch import nn

_HEAD_SIZES = ("head_dim", "dim_head", "head_size", "attention_head_size", "d_head", "d_k")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
_WIDTHS = ("all_head_size", "inner_dim", "attn_dim", "attention_dim")

_QUERY_KEY_VALUE = 3


@dataclass(frozen=True)
class HeadAttributes:
    """Numbers of a module that follow the number of its heads.

    Attributes:
        path: of the module.
        counts: attributes that hold the number of heads.
        widths: attributes that hold the width of all heads.
        head_dim: channels of one head.
    """

    path: str
    head_dim: int
    counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = field(default=())


def attention_heads(trace: Trace, channels: Channels) -> Mapping[frozenset[int], HeadAttributes]:
    """Tie the channels of each head; return the attributes that count heads, by group."""
    found: list[tuple[list[int], HeadAttributes]] = []
    for path, module in trace.module.named_modules():
        if not any(hasattr(module, name) for name in (*_HEAD_SIZES, *_HEAD_COUNTS)):
            continue
        classes = _attention_classes(path, module, channels)
        attributes = _attributes(path, module, len(classes))
        if attributes is None:
            continue
        for index, channel in enumerate(classes):
            channels.tie(channel, classes[index - index % attributes.head_dim])
        found.append((classes, attributes))
    channels.settle()
    return {frozenset(map(channels.find, classes)): attributes for classes, attributes in found}


def _attention_classes(path: str, module: nn.Module, channels: Channels) -> list[int]:
    """Return the channels that queries, keys and values have in common, in their order.

    These come from one linear layer or from three, right in the module, and go to none of them.
    """
    from torch import nn

    prefix = f"{path}." if path else ""
    linear = [
        prefix + name for name, layer in module.named_children() if isinstance(layer, nn.Linear)
    ]
    first: dict[int, int] = {}
    count: Counter[int] = Counter()
    for name in linear:
        for index, channel in sorted(channels.at(name, "out").items()):
            first.setdefault(channel, index)
            count[channel] += 1
    makes = {c: index for c, index in first.items() if count[c] >= _QUERY_KEY_VALUE}
    makers = [name for name in linear if makes.keys() & set(channels.at(name, "out").values())]
    inputs = {channel for name in makers for channel in channels.at(name, "in").values()}
    ordered = sorted((index, channel) for channel, index in makes.items() if channel not in inputs)
    if [index for index, _ in ordered] != list(range(len(ordered))):
        return []
    return [channel for _, channel in ordered]


def _attributes(path: str, module: nn.Module, width: int) -> HeadAttributes | None:
    numbers = {
        name: getattr(module, name)
        for name in (*_HEAD_SIZES, *_HEAD_COUNTS, *_WIDTHS)
        if type(getattr(module, name, None)) is int
    }
    sizes = [numbers[name] for name in _HEAD_SIZES if name in numbers]
    counts = [numbers[name] for name in _HEAD_COUNTS if name in numbers]
    head_dim = sizes[0] if sizes else width // counts[0] if counts and counts[0] else 0
    if not width or head_dim < 1 or width % head_dim:
        return None
    return HeadAttributes(
        path,
        head_dim,
        tuple(n for n in _HEAD_COUNTS if numbers.get(n) == width // head_dim),
        tuple(n for n in _WIDTHS if numbers.get(n) == width),
    )
