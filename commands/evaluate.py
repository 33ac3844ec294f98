"""``evaluate``: measure models on a split, through the same evaluation function."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputExistsError, UsageError
from ..specs import ModelSpec, load_spec
from .evaluate_result import EvaluateResult, ModelMetrics, write_per_sample

if TYPE_CHECKING:
    from ..training.device import Device
    from ..training.evaluation import Evaluation
    from ..training.problem import Problem


_BATCH_SIZE = 128


def evaluate(
    *models: str | Path | ModelSpec,
    split: str | None = None,
    data: str | Path | None = None,
    batch_size: int | None = None,
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
        batch_size: samples a batch of ``data``; 128 by default.
        per_sample: an ``.npz`` that gets the results of single samples: an array a metric; of
            several models ``MODEL/METRIC``.
        force: replace ``per_sample``.
        device: ``CPU`` or ``GPU``; a GPU where there is one by default.
        strict: refuse a GPU that is not there and weights that are random, in place of a warning.
        threads: threads of one operator.
        trust_code: packages may run the code that they carry.
        overrides: ``key.path=value`` changes of the specs.

    Raises:
        UsageError: there is no data, or no model; options do not fit; with ``strict``, the weights
            of a spec are random initial ones, or there is no GPU.
        SpecError: a spec is invalid, or lacks data or evaluation.
        ModelError: a model cannot be read; the evaluation returns no dict, or lacks ``eval_key``.
        InputError: a batch does not fit, or the data cannot be read.
    """
    from ..training.evaluation import unique_names

    if not models:
        raise UsageError("found no model; expected at least one")
    _check_options(split, data, batch_size)
    target = None if per_sample is None else _target(Path(per_sample).expanduser(), force)
    found = [_named(model, overrides, device, strict, threads) for model in models]
    if overrides and all(problem is None for _, _, problem in found):
        raise UsageError("--set changes a spec; found none among the models")
    shared = next((item for _, _, item in found if item is not None and _has_data(item)), None)
    names = unique_names([name for name, _, _ in found])
    entries, key = [], None
    for _, _, own in found:
        if own is not None:
            warn_of_random_weights(own, strict)
    for name, (_, place, own) in zip(names, found, strict=True):
        chosen = own.device if own is not None else _device_of(place, device, strict, threads)
        with _opened(place, own, chosen, threads, trust_code) as model:
            if data is not None:
                file = Path(data).expanduser()
                evaluation, samples, key_here = _on_file(
                    model, own or shared, file, batch_size or _BATCH_SIZE, chosen
                )
            else:
                problem = own if own is not None and _has_data(own) else shared
                evaluation, samples, key_here = _on_split(model, problem, name, split)
        key = key or key_here
        entries.append(
            ModelMetrics(name, place, evaluation.metrics, samples, evaluation.per_sample)
        )
    if target is not None:
        write_per_sample(target, entries)
    used = None
    if data is None and shared is not None:
        used = split or shared.spec.evaluation.eval_split
    return EvaluateResult(entries, key, used)


def _check_options(split: str | None, data: Any, batch_size: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size: found {batch_size}; expected 1 or more")
    if split is not None and data is not None:
        raise UsageError("found both --split and --data, which has no splits; expected one of them")
    if batch_size is not None and data is None:
        raise UsageError(
            f"--batch-size {batch_size}: is of --data; found no --data",
            hint="--set training.batch_size=N changes the batches of a spec's own data",
        )


def _target(target: Path, force: bool) -> Path:
    """Check that a file can be written, before the work."""
    if target.is_dir():
        raise UsageError(f"--per-sample {target}: found a folder; expected a file")
    if target.exists() and not force:
        raise OutputExistsError(f"{target}: exists already", hint="--force replaces it")
    if not target.parent.is_dir():
        raise UsageError(f"--per-sample {target}: its folder does not exist")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"--per-sample {target}: its folder may not be written to")
    return target


def _named(
    model: str | Path | ModelSpec,
    overrides: Sequence[str],
    device: str | None,
    strict: bool,
    threads: int | None,
) -> tuple[str, Path | None, Problem | None]:
    """Return what the user called a model, its file, and its problem where it is a spec."""
    from ..runtime.detect import detect, expand
    from ..training.hardware import choose_device, set_threads
    from ..training.problem import Problem

    path, spec = None, model
    if not isinstance(spec, ModelSpec):
        path = expand(spec)
        if detect(path) != "spec":
            return str(model), path, None
        spec = load_spec(path, overrides)
    framework = spec.model.framework
    set_threads(threads, framework)
    problem = Problem(spec, choose_device(device, strict, framework))
    return (spec.name, spec.path, problem) if path is None else (str(model), path, problem)


def _device_of(path: Path | None, device: str | None, strict: bool, threads: int | None) -> Device:
    """Return where a package or a model file runs."""
    from ..runtime.detect import detect
    from ..training.hardware import choose_device, set_threads

    assert path is not None
    kind = detect(path)
    set_threads(threads, kind)
    return choose_device(device, strict, kind)


def warn_of_random_weights(problem: Problem, strict: bool) -> None:
    """Say that metrics are those of initial weights, as ``model.weights`` is missing.

    Raises:
        UsageError: they are, and ``strict``.
    """
    from ..training.networks import has_random_weights

    if not has_random_weights(problem):
        return
    found = f"{problem.label}: the key 'model.weights' is missing: the weights are random"
    hint = "train writes them: --set model.weights=RUN/weights.safetensors"
    if strict:
        raise UsageError(f"{found}; expected trained ones (--strict)", hint=hint)
    logging.getLogger("ingot").warning("%s initial ones (%s)", found, hint)


def _has_data(problem: Problem) -> bool:
    return problem.spec.data is not None or problem.training.inputter is not None


@contextmanager
def _opened(
    path: Path | None,
    problem: Problem | None,
    device: Device,
    threads: int | None,
    trust_code: bool,
) -> Iterator[Any]:
    """Open a model as something that is called with the arguments of the forward pass."""
    from ..runtime.loading import load
    from ..training.evaluation import CallableModel

    if problem is not None:
        yield problem.load_network(threads)
        return
    assert path is not None
    kind = "gpu" if device == "GPU" else "cpu"
    with load(path, device=kind, threads=threads, trust_code=trust_code) as loaded:
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
