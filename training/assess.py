"""Evaluate any model on a problem: specs, packages and bare files through one function."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IngotError, InputError, ModelError, SpecError
from ..frameworks.base import import_framework
from ..frameworks.entrypoints import user_code_error
from ..specs import ModelSpec
from .data import ArrayInputter, npz_arrays
from .device import Device
from .evaluation import Evaluation, run_evaluation
from .hardware import has_torch
from .modeler import Modeler
from .options import TrainerOptions
from .problem import Problem
from .reading import SplitError, SplitReader
from .runner import batch_size_of

LABEL = "label"


_FIRST_BATCHES = 2
"""How many batches the evaluation is tried on before the first epoch."""


class Counted(SplitReader):
    """The batches of a split, and how many samples went by in the last pass."""

    samples = 0

    def __iter__(self) -> Iterator[Any]:
        self.samples = 0
        for batch in super().__iter__():
            self.samples += batch_size_of(batch)
            yield batch


@contextmanager
def user_code(problem: Problem, what: str) -> Iterator[None]:
    """Turn what the user's code, or a framework called by it, raises into an error with a place.

    Raises:
        ModelError: something was raised that is no error of Ingot.
        OSError: of Ingot's own files: a full disk, a folder that may not be written to.
    """
    folder = problem.components.code.folder
    try:
        yield
    except SplitError as error:
        split = f"{_data_of(problem)}the split {error.split!r}"
        raise user_code_error(problem.label, split, error.cause, folder) from error.cause
    except IngotError:
        raise
    except OSError as error:
        if not _comes_from(error, folder):
            raise
        raise user_code_error(problem.label, what, error, folder) from error
    except Exception as error:
        raise user_code_error(problem.label, what, error, folder) from error


def _data_of(problem: Problem) -> str:
    """Return what gives the data of a spec, for messages."""
    data, inputter = problem.spec.data, problem.training.inputter
    if data is not None:
        return f"data.splits {data.splits!r}: "
    return "" if inputter is None else f"training.inputter {inputter.name!r}: "


def _comes_from(error: BaseException, folder: Path | None) -> bool:
    """Whether code in a folder had to do with an exception."""
    own = Path(__file__).parent.parent
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        is_library = path.is_relative_to(own) or "site-packages" in path.parts
        if folder is not None and path.is_relative_to(folder) and not is_library:
            return True
    return False


def check_evaluation(problem: Problem, modeler: Modeler, options: TrainerOptions) -> None:
    """Try the evaluation on the first batches of its split, as it would fail after an epoch.

    Nothing that training depends on is changed. Where a few batches are not enough for the function
    (a metric that needs every class), it is tried on the whole split.

    Raises:
        ModelError: it fails, or returns no dict of numbers.
        SpecError: it lacks ``eval_key``.
        InputError: a batch does not fit.
    """
    from .randomness import random_state, restore_random_state

    name = options.eval_split
    loader = problem.splits.get(name)
    if loader is None or not options.epochs or hasattr(loader, "__next__"):
        return  # what can be iterated only once is kept for the training
    default = getattr(modeler.evaluation, "default_key", None)
    random = random_state()
    try:
        with user_code(problem, "the evaluation"):
            try:
                found = modeler.evaluate(SplitReader(loader, name, _FIRST_BATCHES))
            except IngotError:
                raise
            except Exception:
                found = modeler.evaluate(SplitReader(loader, name))
            try:
                found.key(options.eval_key, default)
            except (ModelError, SpecError):
                whole = modeler.evaluate(SplitReader(loader, name))
                metric_key(problem, whole, options.eval_key, default)
    finally:
        restore_random_state(random)


def evaluate_on(problem: Problem, model: Any, loader: Iterable[Any]) -> tuple[Evaluation, int]:
    """Evaluate a model with the evaluation of a problem.

    Returns:
        the evaluation, and how many samples the loader gave.
    """
    from .torch_metrics import evaluating

    splits = vars(problem).get("splits", {})
    name = next((name for name, item in splits.items() if item is loader), "data")
    counted = Counted(loader, name)
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
        SpecError: data, split or evaluation are missing, or the evaluation lacks ``eval_key``.
        ModelError: the evaluation returns no dict.
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
        SpecError: it was not measured.
        ModelError: none was named, and there are several.
    """
    default = getattr(problem.evaluation, "default_key", None)
    return metric_key(problem, found, problem.spec.evaluation.eval_key, default)


def metric_key(problem: Problem, found: Evaluation, wanted: str | None, default: str | None) -> str:
    """Return the metric that counts; see :meth:`.Evaluation.key`.

    Raises:
        SpecError: it was not measured; the error names the spec.
        ModelError: none was named, and there are several.
    """
    try:
        return found.key(wanted, default)
    except SpecError as error:
        key, hint = error.key, error.hint
        raise SpecError(error.reason, file=problem.label, key=key, hint=hint) from error


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
    from ..runtime.npz import read_npz_headers

    found = [name for name in read_npz_headers(path, str(path)) if name != LABEL]
    if len(names) == 1 and len(found) == 1:
        names = found
    has_label = needs_label or LABEL in read_npz_headers(path, str(path))
    arrays = npz_arrays(path, names, LABEL if has_label else None)
    pattern: tuple[int | str, ...] = (*range(len(names)), *(("_",) if has_label else ()))
    convert = import_framework("torch", "torch").from_numpy if has_torch() else None
    return ArrayInputter(arrays, batch_size, convert=convert), pattern


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
