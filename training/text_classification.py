"""Texts with labels: files with a row ``sentence<TAB>label`` each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, SpecError, UsageError
from ..specs.hints import did_you_mean
from .data import ArrayInputter, DataContext, Splits, split_of
from .inputter import Array
from .text_data import (
    PADDING,
    VOCABULARY,
    Unit,
    Vocabulary,
    known_vocabulary,
    paths_of,
    read_text,
    require_embeddings,
    require_length,
    rows_of,
    unit_of,
)


@dataclass(frozen=True)
class TextOptions:
    """How a text becomes what the network takes, and how its labels are called.

    Attributes:
        classes: names of the labels, in the order of the network's outputs.
        unit: what a token is, a word or a character.
        length: tokens of a text at most; shorter texts are filled up with padding.
        truncate: leave out what comes after; else a longer text is an error.
        lowercase: texts are put into lower case.
    """

    classes: tuple[str, ...]
    unit: Unit = "word"
    length: int = 64
    truncate: bool = False
    lowercase: bool = True

    @classmethod
    def of(
        cls,
        classes: int | Sequence[str],
        unit: str = "word",
        length: int = 64,
        truncate: bool = False,
        lowercase: bool = True,
        *,
        label: str = "data",
    ) -> TextOptions:
        """Check the arguments of a spec.

        Raises:
            SpecError: one is not what it should be.
        """
        names = _class_names(classes, label)
        if type(length) is not int or length < 1:
            raise SpecError(f"{label}: data: length: found {length!r}; expected an integer from 1")
        return cls(names, unit_of(unit, label, "data: unit"), length, truncate, lowercase)

    def require(self, vocabulary: Vocabulary, label: str) -> None:
        """Check that a vocabulary is one of such tokens.

        Raises:
            SpecError: it was made of tokens of another kind.
        """
        for key in ("unit", "lowercase"):
            here, there = getattr(self, key), getattr(vocabulary, key)
            if here != there:
                raise SpecError(
                    f"{label}: data: {key}: found {here!r}; expected {there!r}, as the vocabulary"
                    " has it"
                )

    def tokens(self, texts: Sequence[str], places: Sequence[str], vocabulary: Vocabulary) -> Array:
        """Return texts as int64 ``(texts, length)``.

        Args:
            texts: without labels.
            places: where each stands, for messages.
            vocabulary: what the tokens are numbered by.

        Raises:
            InputError: a text is empty, or too long.
        """
        found = np.full((len(texts), self.length), PADDING, np.int64)
        for row, text, where in zip(found, texts, places, strict=True):
            numbers = vocabulary.encode(text)
            if self.truncate:
                numbers = numbers[: self.length]
            require_length(numbers, where, self.length, self.unit)
            row[: len(numbers)] = numbers
        return found


def _class_names(classes: Any, label: str) -> tuple[str, ...]:
    if type(classes) is int:
        names = tuple(str(number) for number in range(classes))
    elif isinstance(classes, list | tuple):
        names = tuple(str(name) for name in classes)
    else:
        names = ()
    if len(names) < 2 or len(set(names)) != len(names):
        raise SpecError(
            f"{label}: data: classes: found {classes!r}; expected the names of the labels, two at"
            " least, or how many integers they are",
            hint="classes: [negative, positive]",
        )
    return names


@dataclass(frozen=True)
class LabelledText:
    """A row of a file: text, number of its label, and where it stands."""

    text: str
    label: int
    where: str


def text_splits(
    context: DataContext,
    files: Mapping[str, str],
    classes: int | Sequence[str],
    unit: str = "word",
    length: int = 64,
    truncate: bool = False,
    lowercase: bool = True,
    most_tokens: int | None = None,
    least_count: int = 1,
    vocabulary: str | None = None,
    batch_size: int = 64,
) -> Splits:
    """Texts and labels of files without a header, rows ``sentence<TAB>label``, in UTF-8.

    A batch is tokens, int64 ``(batch, length)``, and labels, int64 ``(batch,)``.

    Args:
        context: given by Ingot.
        files: by split a file, or several with commas between.
        classes: the labels, in the order of the network's outputs; a number n stands for the
            integers 0..n-1.
        unit: what a token is, ``word`` or ``character``.
        length: tokens of a text at most.
        truncate: leave out what comes after; else a longer text is an error.
        lowercase: texts are put into lower case.
        most_tokens: size of the vocabulary at most, padding and unknown included.
        least_count: tokens that occur less often in the training split are unknown.
        vocabulary: the file that a run wrote; by default the one beside the weights of the network,
            and where there is none, it is made of the training split.
        batch_size: samples a batch.

    Raises:
        InputError: a row has another form, an unknown label, or a text that is empty or too long;
            the vocabulary is empty.
    """
    options = TextOptions.of(classes, unit, length, truncate, lowercase, label=context.label)
    rows = {
        split: [
            row
            for path in paths_of(names, context.root)
            for row in read_rows(path, options.classes)
        ]
        for split, names in files.items()
    }
    known = known_vocabulary(context, vocabulary)
    if known is not None:
        options.require(known, context.label)
    else:
        split_of(files, "train", context.label, "data.kwargs.files")
        known = Vocabulary.of(
            (row.text for row in rows["train"]),
            options.unit,
            files["train"],
            lowercase=lowercase,
            most=most_tokens,
            least_count=least_count,
        )
        require_embeddings(known, context)
    return {
        split: TextInputter(
            (
                options.tokens([row.text for row in found], [row.where for row in found], known),
                np.array([row.label for row in found], np.int64),
            ),
            known,
            **context.options(split, batch_size),
        )
        for split, found in rows.items()
    }


def read_rows(path: Path, classes: Sequence[str]) -> list[LabelledText]:
    """Read and check the rows of a file.

    Raises:
        InputError: it cannot be read, or has no rows; a row has no tab, more than one, or a label
            that is not one of ``classes``. The message has its number, from 1.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    found = []
    for number, line in rows_of(read_text(path)):
        where = f"{path}: row {number}"
        columns = line.split("\t")
        if len(columns) != 2:
            raise InputError(
                f"{where}: found {len(columns) - 1 or 'no'} tabs; expected sentence<TAB>label",
                hint="one tab stands between the sentence and its label, and none elsewhere",
            )
        label = columns[1].strip()
        if label not in numbers:
            raise InputError(
                f"{where}: found the label {label!r}; expected one of {', '.join(classes)}",
                hint=did_you_mean(label, classes),
            )
        found.append(LabelledText(columns[0], numbers[label], where))
    if not found:
        raise InputError(f"{path}: found no rows; expected sentence<TAB>label")
    return found


class TextInputter(ArrayInputter):
    """Batches of tokens, with the vocabulary that they are numbered by.

    Args:
        arrays: tokens, then targets; equally many samples in each.
        vocabulary: kept with the weights that are trained on them.
        options: those of :class:`ArrayInputter`.
    """

    def __init__(self, arrays: Sequence[Array], vocabulary: Vocabulary, **options: Any) -> None:
        super().__init__(arrays, **options)
        self.vocabulary = vocabulary

    def keep(self, folder: Path, goes_on: bool) -> None:
        path = folder / VOCABULARY
        if goes_on and path.is_file() and Vocabulary.read(path) != self.vocabulary:
            raise UsageError(
                f"{path}: the vocabulary of the run differs from that of the training split, of"
                f" {len(self.vocabulary)} tokens",
                hint="put back the texts, give data.kwargs.vocabulary, or begin with --fresh",
            )
        self.vocabulary.write(path)
