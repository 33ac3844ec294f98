"""The state of PyTorch's optimizers and schedulers, restored under the options of the present."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .resume import Changes, differences, require_same_tensors

_CYCLED = ("momentum", "betas")
"""Options that a scheduler with ``base_momentum`` changes beside the learning rate."""


def hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    """Return the options of each group of parameters (``lr``, ``weight_decay``, ...), as values."""
    return [
        {name: _value(item) for name, item in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def _value(item: Any) -> Any:
    return item.item() if hasattr(item, "item") else item


def restore_optimizer(
    optimizer: Any, state: Mapping[str, Any], initial: Sequence[Mapping[str, Any]], path: Path
) -> Changes:
    """Restore an optimizer; options that are others now than when it was made are taken.

    The learning rate is multiplied by what its start has changed by, so that a schedule goes on
    from where it is.

    Args:
        optimizer: just made, with its scheduler.
        state: its state dict in the checkpoint.
        initial: the :func:`hyperparameters` that it was made with, then.
        path: the checkpoint.

    Returns:
        the options that have changed.

    Raises:
        ModelError: the state is that of other groups of parameters.
    """
    now = hyperparameters(optimizer)
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise ModelError(
            f"{path}: its optimizer does not fit: {error}", hint="--fresh starts over"
        ) from error
    changed: Changes = {}
    for group, old, new in zip(optimizer.param_groups, initial, now, strict=True):
        found = differences(old, new)
        changed |= {name: item for name, item in found.items() if name not in changed}
        for name in found:
            if name == "lr" or (name in _CYCLED and "base_momentum" in new):
                continue
            group[name] = new[name]
        was, wanted = (item.get("initial_lr", item["lr"]) for item in (old, new))
        if was != wanted:
            ended = group["lr"] == was
            group["lr"] = wanted if ended or not was else group["lr"] * (wanted / was)
    for name in ("initial_lr", "max_lr", "min_lr"):  # they follow from lr
        if "lr" in changed:
            changed.pop(name, None)
    return changed


def restore_scheduler(scheduler: Any, state: Mapping[str, Any] | None, takes_rates: bool) -> None:
    """Restore a scheduler.

    Args:
        scheduler: just made, or None.
        state: its :func:`scheduler_state` in the checkpoint.
        takes_rates: whether it keeps the learning rates that it was just made with.
    """
    if scheduler is None or state is None:
        return
    made = [scheduler, *getattr(scheduler, "_schedulers", ())]
    rates = [getattr(item, "base_lrs", None) for item in made]
    scheduler.load_state_dict(state)
    if takes_rates:
        for item, own in zip(made, rates, strict=True):
            if own is not None:
                item.base_lrs = own


def scheduler_state(scheduler: Any) -> dict[str, Any] | None:
    """Return a scheduler's state without functions, which its constructor makes again."""
    if scheduler is None:
        return None
    state = scheduler.state_dict()
    return {name: value for name, value in state.items() if not inspect.isroutine(value)}


def require_same_network(network: Any, state: Mapping[str, Any], path: Path) -> None:
    """Check that a checkpoint has the tensors of a network.

    Raises:
        ModelError: one is missing, or has another shape.
    """
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    require_same_tensors(own, {name: tuple(value.shape) for name, value in state.items()}, path)
