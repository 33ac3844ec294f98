"""Model files as something that an evaluation calls, and as something that is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from ..training.evaluation import CallableModel, Evaluation
    from ..training.problem import Problem

    Feeds = Mapping[str, np.ndarray[Any, Any]]


@contextmanager
def opened(
    problem: Problem, path: Path, kind: Callable[[Any, str], CallableModel] | None = None
) -> Iterator[Callable[[Iterable[Any]], Evaluation]]:
    """Open a file in its runtime; give a function that evaluates it on batches.

    Args:
        problem: has the evaluation.
        path: the file.
        kind: how it answers; None as ``CallableModel`` does.
    """
    from ..training.assess import evaluate_on

    with callable_file(path, kind) as model:
        yield lambda batches: evaluate_on(problem, model, batches)[0]


@contextmanager
def callable_file(
    path: Path, kind: Callable[[Any, str], CallableModel] | None = None
) -> Iterator[CallableModel]:
    """Open a file in its runtime, as an evaluation function calls it; see :func:`opened`."""
    from ..runtime.loading import load
    from ..training.evaluation import CallableModel

    with load(path, threads=1) as loaded:
        yield (kind or CallableModel)(loaded, path.name)


def feeds_of(problem: Problem, path: Path, batches: Iterable[Any], samples: int) -> list[Feeds]:
    """Return what batches become as inputs of a file: arrays by name, of so many samples at most.

    Args:
        problem: its forward pass takes the inputs out of a batch.
        path: the file, whose inputs they are for.
        batches: of a split.
        samples: after which no further batch is taken, and the last one is cut.

    Raises:
        InputError: the forward pass does not call the model.
    """
    from ..runtime.loading import load
    from ..training.assess import user_code
    from ..training.evaluation import CallableModel

    found: list[Feeds] = []
    with load(path, threads=1) as loaded:
        recorded = _Recording(loaded)
        model = CallableModel(recorded, path.name)
        count = 0
        for batch in batches:
            with user_code(problem, "forward_pass"):
                x = problem.forward_pass.extract_model_inputs(batch)
                problem.forward_pass.model_call(model, x, problem.device)
            for feed in recorded.taken():
                size = len(next(iter(feed.values())))
                room = samples - count
                if model.has_fixed_batch or size <= room:
                    found.append(feed)
                elif room > 0:
                    found.append({name: array[:room] for name, array in feed.items()})
                count += size
            if count >= samples:
                break
    if not found:
        raise InputError(f"{problem.label}: forward_pass: model_call does not call the model")
    return found


def of_batch(feeds: Sequence[Feeds], batch_size: int, path: Path) -> Feeds:
    """Return inputs of exactly so many samples, repeated where there are fewer.

    Args:
        feeds: inputs of a file.
        batch_size: samples; a file that takes batches of one size only gets that size.
        path: the file.
    """
    import numpy as np

    first = feeds[0]
    with callable_file(path) as model:
        if model.has_fixed_batch:
            return first
    count = len(next(iter(first.values())))
    chosen = np.arange(batch_size) % count
    return {name: np.ascontiguousarray(array[chosen]) for name, array in first.items()}


class _Recording:
    """A loaded model that keeps what it was called with."""

    def __init__(self, loaded: Any) -> None:
        self.inputs, self.outputs = loaded.inputs, loaded.outputs
        self._loaded = loaded
        self._feeds: list[Feeds] = []

    def infer(self, arrays: Feeds) -> Any:
        self._feeds.append({name: array.copy() for name, array in arrays.items()})
        return self._loaded.infer(arrays)

    def taken(self) -> list[Feeds]:
        found, self._feeds = self._feeds, []
        return found
