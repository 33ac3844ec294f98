"""``evaluate``: measure models on a split, through the same evaluation function."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputExistsError, UsageError
from ..specs import ModelSpec, load_spec

if TYPE_CHECKING:
    from ..training.device import Device
    from ..training.evaluation import Evaluation
    from ..training.problem import Problem


@dataclass(frozen=True)
class ModelMetrics:
    """What one model achieves.

    Attributes:
        model: what the user called it.
        path: its file; None for a spec given in Python.
        metrics: number by name.
        samples: how many samples were looked at.
        per_sample: one number a sample, by metric; empty when the evaluation gives none.
    """

    model: str
    path: Path | None
    metrics: Mapping[str, float]
    samples: int | None
    per_sample: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the path is absolute."""
        from ..training.evaluation import json_numbers

        return {
            "model": self.model,
            "path": None if self.path is None else str(self.path.absolute()),
            "metrics": json_numbers(self.metrics),
            "samples": self.samples,
        }


@dataclass(frozen=True)
class EvaluateResult:
    """The metrics of one or several models.

    Attributes:
        entries: in the order of the models.
        eval_key: the metric that counts.
        split: what was measured on; None for ``--data``.
    """

    entries: Sequence[ModelMetrics]
    eval_key: str | None
    split: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; ``metrics`` are those of the first model."""
        models = [entry.to_dict() for entry in self.entries]
        return {
            "metrics": models[0]["metrics"],
            "eval_key": self.eval_key,
            "split": self.split,
            "models": models,
        }


def evaluate(
    *models: str | Path | ModelSpec,
    split: str | None = None,
    data: str | Path | None = None,
    batch_size: int = 128,
    per_sample: str | Path | None = None,
    force: bool = False,
    device: str | None = None,
    strict: bool = False,
    threads: int | None = None,
    trust_code: bool = False,
    overrides: Sequence[str] = (),
) -> EvaluateResult:
    """Measure models on a split, through the same evaluation function.

    A spec is measured on its own data, with its own evaluation. Packages, bare model files and
    specs without data take both from the first spec that has data, or the data from ``data``.

    Args:
        models: specs, packages, or model files.
        split: in place of ``evaluation.eval_split``.
        data: an ``.npz`` with arrays by input name, and ``label``; in place of any other data.
        batch_size: samples a batch of ``data``.
        per_sample: an ``.npz`` that gets the results of single samples: an array a metric; of
            several models ``MODEL/METRIC``.
        force: replace ``per_sample``.
        device: ``CPU`` or ``GPU``; a GPU where there is one by default.
        strict: refuse a GPU that is not there, in place of a warning.
        threads: threads of one operator of PyTorch.
        trust_code: packages may run the code that they carry.
        overrides: ``key.path=value`` changes of the specs.

    Raises:
        UsageError: there is no data, or no model.
        SpecError: a spec is invalid, or lacks data or evaluation.
        ModelError: a model cannot be read; the evaluation returns no dict, or lacks ``eval_key``.
        InputError: a batch does not fit, or the data cannot be read.
    """
    from ..runtime.detect import detect, expand
    from ..training.evaluation import unique_names
    from ..training.problem import Problem, choose_device, set_threads

    if not models:
        raise UsageError("found no model; expected at least one")
    target = None if per_sample is None else Path(per_sample).expanduser()
    if target is not None and target.exists() and not force:
        raise OutputExistsError(f"{target}: exists already", hint="--force replaces it")
    chosen = choose_device(device, strict)
    set_threads(threads)
    found: list[tuple[str, Path | None, Problem | None]] = []
    for model in models:
        if isinstance(model, ModelSpec):
            found.append((model.name, model.path, Problem(model, chosen)))
            continue
        path = expand(model)
        is_spec = detect(path) == "spec"
        problem = Problem(load_spec(path, overrides), chosen) if is_spec else None
        found.append((str(model), path, problem))
    if overrides and all(problem is None for _, _, problem in found):
        raise UsageError("--set changes a spec; found none among the models")
    shared = next((item for _, _, item in found if item is not None and _has_data(item)), None)
    names = unique_names([name for name, _, _ in found])
    entries, key = [], None
    for name, (_, place, own) in zip(names, found, strict=True):
        with _opened(place, own, chosen, trust_code) as model:
            if data is not None:
                file = Path(data).expanduser()
                evaluation, samples, key_here = _on_file(
                    model, own or shared, file, batch_size, chosen
                )
            else:
                problem = own if own is not None and _has_data(own) else shared
                evaluation, samples, key_here = _on_split(model, problem, name, split)
        key = key or key_here
        entries.append(
            ModelMetrics(name, place, evaluation.metrics, samples, evaluation.per_sample)
        )
    if target is not None:
        _write_per_sample(target, entries)
    used = None
    if data is None and shared is not None:
        used = split or shared.spec.evaluation.eval_split
    return EvaluateResult(entries, key, used)


def _has_data(problem: Problem) -> bool:
    return problem.spec.data is not None or problem.training.inputter is not None


@contextmanager
def _opened(
    path: Path | None, problem: Problem | None, device: Device, trust_code: bool
) -> Iterator[Any]:
    """Open a model as something that is called with the arguments of the forward pass."""
    from ..runtime.session import load
    from ..training.evaluation import CallableModel

    if problem is not None:
        yield problem.load_network()
        return
    assert path is not None
    kind = "gpu" if device == "GPU" else "cpu"
    with load(path, device=kind, trust_code=trust_code) as loaded:
        yield CallableModel(loaded, str(path))


def _on_split(
    model: Any, problem: Problem | None, name: str, split: str | None
) -> tuple[Evaluation, int, str]:
    from ..training.assess import eval_key, evaluate_on

    if problem is None:
        raise UsageError(
            f"{name}: says nothing of data; expected --data FILE.npz, or a spec with data as"
            " another model"
        )
    key = "--split" if split is not None else "evaluation.eval_split"
    loader = problem.split(split or problem.spec.evaluation.eval_split, key)
    found, samples = evaluate_on(problem, model, loader)
    return found, samples, eval_key(problem, found)


def _on_file(
    model: Any, problem: Problem | None, path: Path, batch_size: int, device: Device
) -> tuple[Evaluation, int, str]:
    """Evaluate on the arrays of a file."""
    from ..training.assess import (
        eval_key,
        evaluate_on,
        evaluation_of_task,
        npz_loader,
        task_of_labels,
    )
    from ..training.evaluation import CallableModel, run_evaluation
    from ..training.torch_forward_pass import TorchForwardPass

    names: list[str]
    if isinstance(model, CallableModel):
        names = [spec.name for spec in model.loaded.inputs]
    else:
        assert problem is not None
        names = [spec.name for spec in problem.spec.inputs or ()]
    own = None
    if problem is not None and (problem.spec.evaluation.function or problem.spec.task):
        own = problem
    loader, pattern = npz_loader(path, names, batch_size, needs_label=own is None)
    forward_pass = TorchForwardPass(pattern)
    if own is None:
        function = evaluation_of_task(task_of_labels(loader.arrays, path), forward_pass)
        found = run_evaluation(function, model, loader, device)
        return found, loader.num_samples, function.default_key
    from ..training.problem import Problem

    fresh = Problem(own.spec, device)
    fresh.forward_pass = forward_pass  # of this file, whatever pattern the spec's data has
    found, samples = evaluate_on(fresh, model, loader)
    return found, samples, eval_key(fresh, found)


def _write_per_sample(target: Path, entries: Sequence[ModelMetrics]) -> None:
    import numpy as np

    arrays = {}
    for entry in entries:
        if not entry.per_sample:
            raise UsageError(
                f"{entry.model}: its evaluation gives no results of single samples; expected a"
                " 'per_sample' array in what it returns"
            )
        for name, values in entry.per_sample.items():
            arrays[name if len(entries) == 1 else f"{entry.model}/{name}"] = values
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
