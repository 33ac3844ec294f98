"""How far a model agrees with another one: a metric for data without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from .evaluation import PER_SAMPLE, EvaluationFunction

AGREEMENT = "agreement"
Array = np.ndarray[Any, Any]


def expected_of(outputs: Mapping[str, Array]) -> Array:
    """Return what a candidate is compared with, from the outputs of the model that was given.

    Args:
        outputs: by name, each ``(samples, ...)``.

    Returns:
        the best class ``(samples,)`` of class scores ``(samples, classes)`` when they are the only
        output (two values or more a sample count as such); else the outputs side by side,
        ``(samples, values)`` in float32.
    """
    values = list(outputs.values())
    first = values[0]
    if len(values) == 1 and first.dtype.kind == "f" and first.ndim == 2 and first.shape[1] > 1:
        return np.asarray(first.argmax(axis=1), np.int64)
    if len(values) == 1 and first.dtype.kind in "iub" and first.size == len(first):
        return np.asarray(first.reshape(-1), np.int64)  # classes already
    return _side_by_side(values)


class AgreementEvaluation(EvaluationFunction):
    """``agreement``, in percent: equal best classes, or 100 times the cosine of the outputs.

    A batch is the inputs of the model and, last, what :func:`expected_of` returned for them.
    ``per_sample``: 1 or 0 for a best class, else the cosine. Of one value a sample, which has no
    direction, it is 1 less the difference in parts of ``spread``, and 0 at least. What is no
    finite number agrees with nothing.

    Args:
        spread: the standard deviation of a single value over the data.
    """

    default_key = AGREEMENT

    def __init__(self, spread: float = 1.0) -> None:
        self.spread = spread if spread > 0 else 1.0

    def apply(self, model: Any, data_loader: Iterable[Any], **kwargs: Any) -> Mapping[str, Any]:
        found: list[Array] = []
        for *inputs, expected in data_loader:
            returned = model(*inputs)
            values = returned if isinstance(returned, tuple) else (returned,)
            arrays = [np.asarray(value) for value in values]
            wanted = np.asarray(expected)
            values_now = _side_by_side(arrays)
            finite = np.isfinite(values_now).all(axis=1)
            if wanted.ndim == 1:
                is_class = values_now.shape[1] == 1
                classes = values_now[:, 0] if is_class else values_now.argmax(axis=1)
                same = classes == wanted
                found.append((same & finite).astype(np.float64))
            elif wanted.shape[1] == 1:
                off = np.abs(values_now - wanted)[:, 0] / self.spread
                found.append(np.where(finite, np.clip(1 - off, 0, 1), 0.0))
            else:
                found.append(np.where(finite, _cosines(values_now, wanted), 0.0))
        if not found:
            raise InputError("the data gave no batch; expected at least one")
        results = np.concatenate(found)
        return {AGREEMENT: 100 * float(results.mean()), PER_SAMPLE: {AGREEMENT: results}}


def _side_by_side(values: list[Array]) -> Array:
    flat = [value.reshape(len(value), -1).astype(np.float32) for value in values]
    return np.concatenate(flat, axis=1)


def _cosines(found: Array, expected: Array) -> Array:
    """Return the cosine of each row with its partner; 1 for two rows of zeros, 0 for one."""
    left, right = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = (left * right).sum(axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    cosines = np.divide(products, norms, out=np.zeros(len(norms)), where=norms > 0)
    return np.asarray(np.where(both_zero, 1.0, cosines))
