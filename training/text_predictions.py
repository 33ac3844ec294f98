"""Predictions about texts: their classes, and what a network writes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import InputError, SpecError
from .components import BUILT_IN, accepted
from .displays import Display
from .image_predictions import IMAGE_SUFFIXES, ClassPrediction, probabilities_of
from .inputter import Array
from .prediction import Prediction, Predictor, as_arrays, only_array, refuse_model
from .text_classification import TextInputter, TextOptions
from .text_data import Vocabulary, known_vocabulary, read_text, rows_of
from .text_generation import generate

if TYPE_CHECKING:
    from .problem import Problem

_BATCH = 64
_BAR = 20
_LONGEST_NAME = 256
_FILE_SUFFIXES = (".csv", ".tsv", ".txt", *IMAGE_SUFFIXES)


class TextRow(str):
    """A row of a file: the text, and where it stands.

    Attributes:
        where: the file and the number of the row, from 1.
    """

    where: str = "the text"


def text_rows(given: Sequence[str], has_labels: bool) -> list[TextRow]:
    """Return texts, and the rows of files that are not blank.

    What is no file is a text, unless it looks like the name of one: without a space, and with a
    dot or a slash; or with the end of a name, such as ``.txt``.

    Args:
        given: files in UTF-8, and texts.
        has_labels: what follows a tab in a row, a label, is left out.

    Raises:
        InputError: a file cannot be read, or has no rows.
    """
    found: list[TextRow] = []
    for name in given:
        if _is_text(name):
            found.append(TextRow(name))
            found[-1].where = f"the text {name[:40]!r}"
            continue
        path = Path(name).expanduser()
        refuse_model(path)
        before = len(found)
        for number, line in rows_of(read_text(path)):
            row = TextRow(line.partition("\t")[0] if has_labels else line)
            row.where = f"{path}: row {number}"
            found.append(row)
        if len(found) == before:
            raise InputError(f"{path}: found no rows; expected a text in each")
    return found


def _is_text(name: str) -> bool:
    if len(name) < _LONGEST_NAME and Path(name).expanduser().exists():
        return False
    if len(name) < _LONGEST_NAME and Path(name).suffix.lower() in _FILE_SUFFIXES:
        return False
    return any(character.isspace() for character in name) or not set(name) & {".", "/"}


def vocabulary_of(problem: Problem) -> Vocabulary:
    """Return the vocabulary of a spec: one that a run kept, or that of its training split.

    Raises:
        SpecError: its data has none.
    """
    data = problem.data_component
    if data.name in BUILT_IN["data"]:
        found = known_vocabulary(problem.data_context, data.kwargs.get("vocabulary"))
        if found is not None:
            return found
    loader = problem.split("train", problem.data_key)
    if not isinstance(loader, TextInputter):
        raise SpecError(
            f"{problem.label}: {problem.data_key}: found a {type(loader).__name__} without a"
            " vocabulary; expected the data 'text' or 'characters', or a TextInputter",
            hint="training.predictor names a predictor of your own",
        )
    return loader.vocabulary


@dataclass(frozen=True)
class TextClassPrediction(ClassPrediction):
    """The class of a text."""

    sample_key: ClassVar[str] = "text"


@dataclass(frozen=True)
class GeneratedText(Prediction):
    """What a network wrote.

    Attributes:
        text: the prompt, and what follows it.
    """

    text: str
    sample_key: ClassVar[str] = "prompt"

    def to_dict(self) -> dict[str, Any]:
        return {self.sample_key: self.sample, "text": self.text}

    def line(self) -> str:
        return self.text


class TextClassificationPredictor(Predictor):
    """Class and probabilities of the rows of text files; what follows a tab is left out.

    The model takes tokens ``(batch, length)`` and returns logits or probabilities ``(batch,
    classes)``.
    """

    display = "infer_display_text_classification"

    def samples(self, files: Sequence[str]) -> list[str]:
        return list(text_rows(files, has_labels=True))

    def predict(self, samples: Sequence[str]) -> Iterator[Prediction]:
        problem = self.problem
        kwargs = accepted(TextOptions.of, problem.data_component.kwargs)
        options = TextOptions.of(**{**kwargs, "label": problem.label})
        vocabulary = vocabulary_of(problem)
        options.require(vocabulary, problem.label)
        places = [getattr(text, "where", "the text") for text in samples]
        tokens = options.tokens(samples, places, vocabulary)
        for start in range(0, len(samples), _BATCH):
            part = (tokens[start : start + _BATCH],)
            outputs = problem.forward_pass.model_call(self.model, part, problem.device)
            scores = only_array(as_arrays(outputs), 2, "(batch, classes)")
            if scores.shape[1] != len(options.classes):
                raise InputError(
                    f"the model returned scores of {scores.shape[1]} classes; expected"
                    f" {len(options.classes)}: {', '.join(options.classes)}"
                )
            texts = samples[start : start + _BATCH]
            for text, values in zip(texts, probabilities_of(scores), strict=True):
                yield TextClassPrediction(text, int(values.argmax()), values, options.classes)

    def arrays(self, predictions: Sequence[TextClassPrediction]) -> dict[str, Array]:
        return {
            "classes": np.array([item.classes for item in predictions], np.int64),
            "probabilities": np.stack([item.probabilities for item in predictions]).astype("f4"),
        }


class TextGenerationPredictor(Predictor):
    """Writes on each row of text files; see :func:`~ingot.training.text_generation.generate`.

    The model takes tokens ``(1, length)`` and returns logits ``(1, length, tokens)``.

    Args:
        problem: the parts of the spec.
        model: the model.
        count: tokens to draw for each.
        temperature: of the draw; 0 takes the most likely token each time.
        seed: of the draw, for the first row; one more for each that follows.
        stop: a token that ends the text.
    """

    display = "infer_display_text_generation"

    def __init__(
        self,
        problem: Problem,
        model: Any,
        count: int = 200,
        temperature: float = 0.8,
        seed: int = 0,
        stop: str | None = None,
    ) -> None:
        super().__init__(problem, model)
        self.count, self.temperature, self.seed, self.stop = count, temperature, seed, stop

    def samples(self, files: Sequence[str]) -> list[str]:
        return list(text_rows(files, has_labels=False))

    def predict(self, samples: Sequence[str]) -> Iterator[Prediction]:
        vocabulary = vocabulary_of(self.problem)
        length = int(self.problem.data_component.kwargs.get("length", 64))
        for number, prompt in enumerate(samples):
            text = generate(
                self._logits,
                vocabulary,
                prompt,
                self.count,
                length=length,
                temperature=self.temperature,
                seed=self.seed + number,
                stop=self.stop,
            )
            yield GeneratedText(prompt, text)

    def _logits(self, tokens: Array) -> Array:
        problem = self.problem
        outputs = problem.forward_pass.model_call(self.model, (tokens,), problem.device)
        return only_array(as_arrays(outputs), 3, "(batch, length, tokens)")


class TextClassificationDisplay(Display):
    """Writes the text with a bar for each of its likeliest classes.

    Args:
        most: how many classes.
    """

    def __init__(self, most: int = 3) -> None:
        self.most = most

    def names(self, stem: str) -> list[str]:
        return [f"{stem}.txt"]

    def contents(self, prediction: ClassPrediction) -> list[Any]:
        ranked = prediction.ranked(self.most)
        width = max(len(name) for name, _ in ranked)
        bars = [
            f"  {name:{width}}  {100 * value:5.1f} %  {'#' * round(_BAR * value)}".rstrip()
            for name, value in ranked
        ]
        return ["\n".join([prediction.sample, *bars]) + "\n"]


class TextGenerationDisplay(Display):
    """Writes the text, prompt and all."""

    def names(self, stem: str) -> list[str]:
        return [f"{stem}.txt"]

    def contents(self, prediction: GeneratedText) -> list[Any]:
        return [prediction.text.rstrip("\n") + "\n"]
