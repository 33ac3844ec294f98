"""Measures the metric of a spec on its source and on the files that were exported from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CheckError
from ..frameworks import LoadOptions, open_model
from ..runtime.child import call_in_child
from ..runtime.exchange import pack_source, unpack_source
from ..specs import ModelSpec, load_spec
from .base import Array, Draft, Job

METRIC_TOLERANCES = {"fp32": 0.005, "fp16": 0.02, "bf16": 0.05}
"""Largest permitted change of the metric, relative to the source's value.

Where two classes are nearly as likely, rounding alone may swap them: one sample of two hundred.
"""


@dataclass(frozen=True)
class Measured:
    """Metrics by name of the source and of each file, and the name of the one that counts."""

    eval_key: str
    reference: dict[str, float]
    files: tuple[dict[str, float], ...]


def has_evaluation(spec: ModelSpec | None) -> bool:
    """Whether a spec says how, and on what, to measure its model; it has to be a file."""
    if spec is None or spec.path is None:
        return False
    has_data = spec.data is not None or bool(spec.training and spec.training.inputter)
    return has_data and (spec.evaluation.function is not None or spec.task is not None)


def measure(
    spec: ModelSpec, overrides: Sequence[str], job: Job, drafts: Sequence[Draft]
) -> Measured:
    """Run the evaluation of a spec on its source and on files, in a fresh process.

    Raises:
        CheckError: the metric that counts differs by more than its tolerance.
        IngotError: whatever the data or the evaluation raised.
    """
    models = [job.source, *(replace(draft.runner, label=draft.path.name) for draft in drafts)]
    request = {
        "spec": str(spec.path),
        "overrides": list(overrides),
        "models": [pack_source(source) for source in models],
    }
    answer, _ = call_in_child("exporters.metrics:serve", request, job.source.label)
    reference, *files = answer["metrics"]
    key = answer["eval_key"]
    limit = METRIC_TOLERANCES[job.precision] * abs(reference[key])
    for draft, found in zip(drafts, files, strict=True):
        if not abs(found[key] - reference[key]) <= limit:
            raise CheckError(
                f"{draft.path.name}: not delivered: its {key} is {found[key]:.6g}, the source's"
                f" {reference[key]:.6g}; expected within {limit:.2g}"
            )
    return Measured(key, reference, tuple(files))


def serve(
    request: Mapping[str, Any], arrays: Mapping[str, Array]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Evaluate models; the other end of :func:`measure`, in a fresh process."""
    from ..runtime.session import LoadedModel
    from ..training.assess import eval_key, evaluate_on
    from ..training.evaluation import CallableModel
    from ..training.problem import Problem

    spec = load_spec(request["spec"], request["overrides"])
    problem = Problem(spec)
    loader = problem.split(spec.evaluation.eval_split, "evaluation.eval_split")
    metrics, key = [], ""
    for number, packed in enumerate(request["models"]):
        source = unpack_source(packed)
        if number == 0 and source.framework == "torch":
            found, _ = evaluate_on(problem, problem.load_network(), loader)
        else:
            options = LoadOptions(threads=1)
            with LoadedModel(
                source.label, source.framework, source.label, open_model(source, options), False
            ) as loaded:
                found, _ = evaluate_on(problem, CallableModel(loaded, source.label), loader)
        key = key or eval_key(problem, found)
        metrics.append(found.metrics)
    return {"metrics": metrics, "eval_key": key}, {}
