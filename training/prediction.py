"""Predictions of single samples: what ``infer --files`` gives, one predictor a kind of problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import InputError, SpecError, UsageError
from ..specs.declare import Component
from .components import BUILT_IN, accepted
from .inputter import Array, Inputter

if TYPE_CHECKING:
    from .problem import Problem

_MODEL_SUFFIXES = (".ingot", ".keras", ".onnx", ".pt", ".pt2", ".pth", ".safetensors", ".tflite")


@dataclass(frozen=True)
class Prediction(ABC):
    """What a network says about one sample.

    Attributes:
        sample: the file, or the text.
        sample_key: what the sample is called in JSON.
    """

    sample: str
    sample_key: ClassVar[str] = "file"

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the sample is one of them, under :attr:`sample_key`."""

    @abstractmethod
    def line(self) -> str:
        """Return it for people to read; one line, but for text that has more."""


class Predictor(ABC):
    """Runs samples through the preprocessing of a spec's inputter and through a network.

    Derive from it, write :meth:`predict`, and name it in the registry (``predictor``) or in
    ``training.predictor``. Its other parameters are arguments that the spec may give.

    Args:
        problem: the parts of the spec.
        model: what is called with the arguments of the forward pass, in eval mode.

    Attributes:
        display: name of the callback that shows its predictions.
    """

    display: ClassVar[str]

    def __init__(self, problem: Problem, model: Any) -> None:
        self.problem, self.model = problem, model

    def samples(self, files: Sequence[str]) -> list[str]:
        """Return the samples that files, texts or lists of them stand for; by default as they are.

        Raises:
            InputError: one cannot be read.
        """
        return list(files)

    @abstractmethod
    def predict(self, samples: Sequence[str]) -> Iterator[Prediction]:
        """Yield the prediction of each sample, in their order.

        Raises:
            InputError: a sample cannot be read, or the model returns something unexpected.
        """

    def arrays(self, predictions: Sequence[Any]) -> dict[str, Array]:
        """Return predictions as arrays by name, for ``-o FILE.npz`` and for Python.

        Raises:
            UsageError: they have none.
        """
        raise UsageError(
            f"{type(self).__name__}: predictions of this kind are no arrays",
            hint="-o FILE.json writes them as JSON",
        )


class BatchPredictor(Predictor):
    """A predictor whose samples go through the network in batches, once each."""

    def predict(self, samples: Sequence[str]) -> Iterator[Prediction]:
        inputter = file_inputter(self.problem, samples)
        done = 0
        for batch in inputter.batches(0):
            inputs = tuple(batch)
            outputs = self.problem.forward_pass.model_call(self.model, inputs, self.problem.device)
            count = len(inputs[0])
            yield from self.decoded(as_arrays(outputs), samples[done : done + count], inputter)
            done += count

    @abstractmethod
    def decoded(
        self, outputs: Any, samples: Sequence[str], inputter: Inputter
    ) -> Iterable[Prediction]:
        """Return the predictions of one batch.

        Args:
            outputs: what the model returned, with arrays in place of tensors.
            samples: those of the batch.
            inputter: it made the batch.
        """


def file_inputter(problem: Problem, files: Sequence[str]) -> Inputter:
    """Return an inputter of samples without targets, prepared as those of the spec's own data.

    Built-in data has a function for that (``files`` in the registry), which needs no data; an
    inputter of the user's own has a method ``for_files(files)``.

    Raises:
        UsageError: the data of the spec has neither.
        SpecError: the spec has no data.
    """
    wanted, key, components = problem.data_component, problem.data_key, problem.components
    if wanted.name in BUILT_IN["files"]:
        function = components.find("files", wanted.name, key)
        kwargs = accepted(function, wanted.kwargs)  # the others are about data with targets
        extra = {"context": problem.data_context, "files": list(files)}
        found: Inputter = components.call(function, {**kwargs, **extra}, key, wanted.name)
        return found
    for split in dict.fromkeys([problem.spec.evaluation.eval_split, *problem.splits]):
        make = getattr(problem.splits.get(split), "for_files", None)
        if callable(make):
            found = make(list(files))
            return found
    raise UsageError(
        f"{problem.label}: {key} {wanted.name!r} prepares no single files; expected one of"
        f" {', '.join(sorted(BUILT_IN['files']))}, or inputters with a method for_files(files)"
    )


def predictor_of(problem: Problem, model: Any) -> Predictor:
    """Return the predictor of a spec: ``training.predictor``, or that of its task or evaluation.

    Raises:
        SpecError: the spec says none of them, or names one that does not exist.
    """
    wanted = problem.training.predictor
    if wanted is None:
        names = (problem.spec.task, problem.spec.evaluation.function)
        name = next((item for item in names if item in BUILT_IN["predictor"]), None)
        if name is None:
            raise SpecError(
                f"{problem.label}: the key 'training.predictor' is missing; expected it, or task"
            )
        wanted = Component(name)
    key = "training.predictor"
    found = problem.components.make("predictor", wanted, key, problem=problem, model=model)
    if not isinstance(found, Predictor):
        raise SpecError(
            f"{problem.label}: {key}: {wanted.name!r} is a {type(found).__name__}; expected a"
            " Predictor"
        )
    return found


def as_arrays(value: Any) -> Any:
    """Return NumPy arrays in place of tensors, also in lists, tuples and dicts."""
    if isinstance(value, Mapping):
        return {name: as_arrays(child) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [as_arrays(child) for child in value]
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def only_array(outputs: Any, ndim: int, expected: str) -> Array:
    """Return the one array that a model returned, bare or in a list or dict.

    Args:
        outputs: with arrays in place of tensors.
        ndim: how many dimensions it has.
        expected: what it should be, in words.

    Raises:
        InputError: there are several, or it has other dimensions.
    """
    leaves = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    if isinstance(leaves, list):
        if len(leaves) != 1:
            raise InputError(f"the model returned {len(leaves)} outputs; expected {expected}")
        leaves = leaves[0]
    found: Array = leaves
    if found.ndim != ndim:
        raise InputError(f"the model returned shape {found.shape}; expected {expected}")
    return found


def listed_files(files: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """Return the files that some names stand for.

    A folder stands for the files in it that end in one of ``suffixes``, sorted; a CSV for the files
    of its first column; a text with commas, which is no file, for several names.

    Raises:
        InputError: something is not there, or there is nothing in it.
    """
    found: list[str] = []
    for name in files:
        path = Path(name).expanduser()
        refuse_model(path)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
            if not inside:
                raise InputError(f"{path}: found no files that end in {', '.join(suffixes)}")
            found += map(str, inside)
        elif path.suffix.lower() == ".csv":
            found += _first_column(path)
        elif not path.exists() and "," in name:
            found += listed_files([part.strip() for part in name.split(",")], suffixes)
        elif not path.is_file():
            raise InputError(f"{path}: no such file")
        else:
            found.append(str(path))
    return found


def refuse_model(path: Path) -> None:
    """Check that a sample is no model: a suffix tells.

    Raises:
        InputError: it is one.
    """
    if path.suffix.lower() in _MODEL_SUFFIXES and path.exists():
        raise InputError(
            f"{path}: found a model, or weights; --files expected what it is to answer about",
            hint="the model comes first: ingot infer MODEL --spec SPEC --files FILE",
        )


def _first_column(path: Path) -> list[str]:
    from .csv_rows import read_rows

    return [row.path for row in read_rows(Path(), str(path), None)]
