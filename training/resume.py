"""What a checkpoint was written with, against what a run goes on with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError, UsageError

_ABSENT = "nothing"

_DATA = frozenset(
    ("workers", "seed", "batch_size", "batches", "samples", "data", "inputter", "augmenter")
)
"""Entries that decide which batches an epoch has: in the middle of one, they must be the same."""

_STATE = frozenset(("optimizer", "scheduler", "interval", "trainable", "weight_decay_skip"))
"""Entries that the state of optimizer and scheduler belongs to."""

_METRIC = frozenset(("eval_key", "eval_split", "higher_is_better"))
"""Entries that the best value so far belongs to."""

_TO_THE_END = ("CosineAnnealingLR", "CosineDecay", "OneCycleLR")
"""Schedulers, one of Keras among them, that count on the steps that they were made for."""

Changes = dict[str, tuple[Any, Any]]


def differences(old: Any, new: Any, name: str = "") -> Changes:
    """Return what differs between two trees of JSON values, by dotted name: old and new."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: Changes = {}
        for key in [*old, *(key for key in new if key not in old)]:
            child = f"{name}.{key}" if name else str(key)
            found |= differences(old.get(key, _ABSENT), new.get(key, _ABSENT), child)
        return found
    return {} if old == new else {name: (old, new)}


def changes_since(
    path: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    epoch: int,
    is_within_epoch: bool,
    is_measured: bool,
) -> Changes:
    """Return what the rest of a run does otherwise than the run that wrote a checkpoint.

    Args:
        path: the checkpoint.
        old: the recipe that it was written with.
        new: the recipe of this run.
        epoch: the epoch that the checkpoint was written in, from 1.
        is_within_epoch: whether batches of that epoch are still to come.
        is_measured: whether there was an evaluation.

    Raises:
        UsageError: the checkpoint cannot be gone on with: its optimizer or scheduler is another,
            its best value was measured otherwise, or the rest of its epoch would be other data.
    """
    changed = differences(old, new)
    same = "go on with the same, or start over with --fresh"
    refused = _named(changed, _STATE)
    if refused:
        raise UsageError(f"{path}: was written with {_told(refused)}", hint=same)
    refused = _named(changed, _METRIC) if is_measured else {}
    if refused:
        raise UsageError(f"{path}: its best value is that of {_told(refused)}", hint=same)
    refused = _named(changed, _DATA) if is_within_epoch else {}
    if refused:
        raise UsageError(
            f"{path}: was written in the middle of epoch {epoch} with {_told(refused)}; the rest"
            " of the epoch would be other data",
            hint=f"{same}; after a whole epoch, the data may change",
        )
    return changed


def described(changed: Changes) -> str:
    """Return changes in words: ``lr 0.1 (now 0.2), workers 2 (now 1)``."""
    return ", ".join(
        f"{name} {_short(old)} (now {_short(new)})" for name, (old, new) in changed.items()
    )


def _told(changed: Changes) -> str:
    old = ", ".join(f"{name} {_short(values[0])}" for name, values in changed.items())
    new = ", ".join(_short(values[1]) for values in changed.values())
    return f"{old}; found {new}"


def _named(changed: Changes, names: Iterable[str]) -> Changes:
    wanted = set(names)
    return {name: item for name, item in changed.items() if name.partition(".")[0] in wanted}


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def require_schedule(
    scheduler: Any, tree: Mapping[str, Any], epochs: int, steps: int | None, path: Path
) -> None:
    """Check that a schedule does not end before the run.

    Args:
        scheduler: of this run.
        tree: the checkpoint.
        epochs: of this run.
        steps: of this run, where the scheduler counts steps.
        path: the checkpoint.

    Raises:
        UsageError: it does.
    """
    kind = type(scheduler).__name__
    if kind not in _TO_THE_END:
        return
    made_for, found, what = tree["epochs"], epochs, "epochs"
    if steps is not None and tree["steps"] is not None and epochs <= made_for:
        made_for, found, what = tree["steps"], steps, "steps"
    if found > made_for:
        raise UsageError(
            f"{path}: its schedule ({kind}) ends after {made_for} {what}; found {found} to train",
            hint="--fresh starts over",
        )


def require_same_tensors(
    own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Check that a checkpoint has the tensors of a network.

    Args:
        own: shapes of the network's tensors.
        found: shapes of those in the checkpoint.
        path: the checkpoint.

    Raises:
        ModelError: one is missing, or has another shape.
    """
    for name in [*own, *(name for name in found if name not in own)]:
        if own.get(name) != found.get(name):
            raise ModelError(
                f"{path}: a checkpoint of another network: the tensor {name!r} is"
                f" {found.get(name, 'missing')} in it, and {own.get(name, 'missing')} in the"
                " network",
                hint="--fresh starts over",
            )
