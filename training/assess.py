"""Evaluate any model on a problem: specs, packages and bare files through one function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IngotError, InputError
from ..frameworks.entrypoints import user_code_error
from ..specs import ModelSpec
from .data import ArrayInputter, npz_arrays
from .device import Device
from .evaluation import Evaluation, run_evaluation
from .problem import Problem
from .runner import batch_size_of

LABEL = "label"


@dataclass
class Counted:
    """The batches of a split, and how many samples went by in the last pass."""

    loader: Iterable[Any]
    samples: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Any]:
        self.samples = 0
        for batch in self.loader:
            self.samples += batch_size_of(batch)
            yield batch

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)  # a function may ask for loader.dataset


@contextmanager
def user_code(problem: Problem, what: str) -> Iterator[None]:
    """Turn what the user's code, or a framework called by it, raises into an error with a place.

    Raises:
        ModelError: something was raised that is no error of Ingot.
    """
    try:
        yield
    except (IngotError, OSError):
        raise
    except Exception as error:
        raise user_code_error(problem.label, what, error, problem.components.code.folder) from error


def evaluate_on(problem: Problem, model: Any, loader: Iterable[Any]) -> tuple[Evaluation, int]:
    """Evaluate a model with the evaluation of a problem.

    Returns:
        the evaluation, and how many samples the loader gave.
    """
    from .torch_metrics import evaluating

    counted = Counted(loader)
    with user_code(problem, "the evaluation"), evaluating(model):
        found = run_evaluation(problem.evaluation, model, counted, problem.device)
    return found, counted.samples


def evaluate_spec(
    spec: ModelSpec,
    model: Any = None,
    split: str | None = None,
    *,
    device: Device = Device.CPU,
    problem: Problem | None = None,
) -> dict[str, float]:
    """Return the metrics of a spec's model, or of another one, on a split of its data.

    Args:
        spec: names data and evaluation.
        model: a module, or a callable of the arguments of the forward pass; the spec's own, with
            its weights, by default.
        split: ``evaluation.eval_split`` by default.
        device: where to run.
        problem: the parts of the spec, when they are made already.

    Raises:
        SpecError: data, split or evaluation are missing.
        ModelError: the evaluation returns no dict, or lacks ``eval_key``.
        InputError: a batch does not fit the pattern.
    """
    problem = problem or Problem(spec, device)
    if model is None:
        model = problem.load_network()
    loader = problem.split(split or spec.evaluation.eval_split, "evaluation.eval_split")
    found, _ = evaluate_on(problem, model, loader)
    eval_key(problem, found)
    return found.metrics


def eval_key(problem: Problem, found: Evaluation) -> str:
    """Return the metric that counts.

    Raises:
        ModelError: it was not measured.
    """
    default = getattr(problem.evaluation, "default_key", None)
    return found.key(problem.spec.evaluation.eval_key, default)


def npz_loader(
    path: Path, names: list[str], batch_size: int, *, needs_label: bool
) -> tuple[ArrayInputter, tuple[int | str, ...]]:
    """Return the batches of an ``.npz``: arrays by the names of inputs, and ``label``.

    Where the model has one input and the file one array beside the labels, names do not matter.

    Returns:
        the batches, and their pattern.

    Raises:
        InputError: an array is missing.
    """
    import torch

    from ..runtime.npz import read_npz_headers

    found = [name for name in read_npz_headers(path, str(path)) if name != LABEL]
    if len(names) == 1 and len(found) == 1:
        names = found
    has_label = needs_label or LABEL in read_npz_headers(path, str(path))
    arrays = npz_arrays(path, names, LABEL if has_label else None)
    pattern: tuple[int | str, ...] = (*range(len(names)), *(("_",) if has_label else ()))
    return ArrayInputter(arrays, batch_size, convert=torch.from_numpy), pattern


def task_of_labels(arrays: tuple[np.ndarray[Any, Any], ...], path: Path) -> str:
    """Return the task whose targets labels are: by their type and dimensions.

    Raises:
        InputError: they are those of no task that has a built-in evaluation.
    """
    label = arrays[-1]
    if label.dtype.kind in "iu" and (label.ndim == 1 or (label.ndim == 2 and label.shape[1] == 1)):
        return "classification"
    if label.dtype.kind in "iu" and label.ndim == 3:
        return "segmentation"
    raise InputError(
        f"{path}: found labels of type {label.dtype} and shape {label.shape}; expected integers"
        " (samples,) or (samples, height, width)",
        hint="give a spec with an evaluation of your own as another MODEL",
    )


def evaluation_of_task(task: str, forward_pass: Any) -> Any:
    """Return the built-in evaluation of a task."""
    from .torch_metrics import ClassificationEvaluation, SegmentationEvaluation

    kinds: Mapping[str, Any] = {
        "classification": ClassificationEvaluation,
        "segmentation": SegmentationEvaluation,
    }
    return kinds[task](forward_pass=forward_pass)
