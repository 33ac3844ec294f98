"""Names the first layer at which an exported file parts from its source."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from ..runtime.layers import compare_layers, first_divergence, trace
from .base import Array, Draft, Job


def first_diverging_layer(
    draft: Draft, job: Job, arrays: Mapping[str, Array], tolerance: float
) -> str | None:
    """Say where an ONNX file parts from a PyTorch, Keras or ONNX source; None where none can tell.

    Args:
        draft: the file that differs.
        job: its source.
        arrays: inputs on which it does.
        tolerance: the permitted difference, relative to the largest value of a layer's output.
    """
    try:
        expected = job.model.layers(arrays)
        if not expected:
            return None
        runner = replace(draft.runner, label=draft.path.name)
        differences = compare_layers(expected, trace(runner, arrays).layers)
    except Exception as error:  # whatever it is, the file still differs, and that has to be said
        logging.getLogger("ingot").debug("%s: no layers: %s", draft.path.name, error)
        return None
    found = first_divergence(differences, tolerance)
    if found is None:
        return None
    return (
        f"the first layer that differs is {found.name} ({found.kind}), by {found.relative:.2g} of"
        " its largest value"
    )
