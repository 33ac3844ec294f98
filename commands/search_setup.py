"""What every search checks of its options, and takes from them, before any work."""

from __future__ import annotations

import math
from dataclasses import replace

from ..errors import SpecError, UsageError
from ..specs import ModelSpec


def check_ways(resume: bool, fresh: bool) -> None:
    """Refuse to go on and to start over at once.

    Raises:
        UsageError: both are asked for.
    """
    if resume and fresh:
        raise UsageError("found both --resume and --fresh; expected one of them")


def check_delta(delta: float) -> None:
    """Refuse a drop that is none.

    Raises:
        UsageError: it is negative, or no finite number.
    """
    if not (delta >= 0 and math.isfinite(delta)):
        raise UsageError(f"--delta: found {delta}; expected a number of at least 0")


def named_spec(
    spec: ModelSpec, eval_key: str | None, eval_split: str | None, label: str
) -> ModelSpec:
    """Return the spec with the metric and the split that options name.

    Args:
        spec: of the model.
        eval_key: the metric that counts; None leaves the spec's.
        eval_split: the split that it is measured on; None leaves the spec's.
        label: what messages call the spec.

    Raises:
        SpecError: the split to confirm on is the one that is measured on.
    """
    evaluation = spec.evaluation
    if eval_key is not None:
        evaluation = replace(evaluation, eval_key=eval_key)
    if eval_split is not None:
        evaluation = replace(evaluation, eval_split=eval_split)
    if evaluation.confirm_split == evaluation.eval_split:
        raise SpecError(
            f"{label}: evaluation.confirm_split: found {evaluation.confirm_split!r}, which the"
            " search measures on; expected another split"
        )
    return replace(spec, evaluation=evaluation)
