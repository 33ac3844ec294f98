"""Structured channel pruning: groups of channels, pruned copies, and the recipe to do it again.

``channel_groups`` says what can go, ``prune`` takes it away, ``check_against_mask`` proves it.
"""

from __future__ import annotations

from .graph import ChannelGraph, ChannelGroup, Member, channel_graph, channel_groups
from .importance import batch_norm_scale, magnitude, taylor
from .masks import check_against_mask, masked, verify_groups
from .prune import prune
from .recipe import Recipe
from .store import load_compressed, save_compressed
from .tracing import UnprunableError

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Member",
    "Recipe",
    "UnprunableError",
    "batch_norm_scale",
    "channel_graph",
    "channel_groups",
    "check_against_mask",
    "load_compressed",
    "magnitude",
    "masked",
    "prune",
    "save_compressed",
    "taylor",
    "verify_groups",
]
