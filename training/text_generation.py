"""Running text, cut into windows for a network that predicts the next token; and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..errors import InputError, ModelError, SpecError, UsageError
from .data import DataContext, Splits, split_of
from .inputter import Array
from .text_classification import TextInputter
from .text_data import (
    UNKNOWN,
    Vocabulary,
    known_vocabulary,
    paths_of,
    read_text,
    require_embeddings,
    unit_of,
)

NextToken = Callable[[Array], Array]
"""Tokens, int64 ``(1, length)``, to logits of the token after each, ``(1, length, tokens)``."""


def character_splits(
    context: DataContext,
    files: Mapping[str, str],
    length: int = 64,
    step: int | None = None,
    unit: str = "character",
    lowercase: bool = False,
    most_tokens: int | None = None,
    vocabulary: str | None = None,
    batch_size: int = 64,
) -> Splits:
    """Windows of running text, in UTF-8 files.

    A batch is tokens, int64 ``(batch, length)``, and for each the token that comes after it.

    Args:
        context: given by Ingot.
        files: by split a file, or several with commas between; each is a text of its own.
        length: tokens of a window.
        step: tokens from the beginning of a window to that of the next; ``length`` by default.
        unit: what a token is, ``character`` or ``word``.
        lowercase: texts are put into lower case.
        most_tokens: size of the vocabulary at most, padding and unknown included.
        vocabulary: the file that a run wrote; by default the one beside the weights of the network,
            and where there is none, it is made of the training split.
        batch_size: windows a batch.

    Raises:
        InputError: a file cannot be read, or has fewer tokens than a window; the vocabulary is
            empty.
    """
    kind = unit_of(unit, context.label, "data: unit")
    step = length if step is None else step
    for key, value in {"length": length, "step": step}.items():
        if type(value) is not int or value < 1:
            raise SpecError(
                f"{context.label}: data: {key}: found {value!r}; expected an integer from 1"
            )
    texts = {
        split: {path: read_text(path) for path in paths_of(names, context.root)}
        for split, names in files.items()
    }
    known = known_vocabulary(context, vocabulary)
    if known is not None:
        if (known.unit, known.lowercase) != (kind, lowercase):
            raise SpecError(
                f"{context.label}: data: found {kind} and lowercase {lowercase}; expected"
                f" {known.unit} and {known.lowercase}, as its vocabulary has it"
            )
    else:
        split_of(files, "train", context.label, "data.kwargs.files")
        known = Vocabulary.of(
            texts["train"].values(), kind, files["train"], lowercase=lowercase, most=most_tokens
        )
        require_embeddings(known, context)
    found = {}
    for split, entries in texts.items():
        parts = [_windows(text, path, known, length, step) for path, text in entries.items()]
        windows = np.concatenate(parts)
        arrays = (np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))
        found[split] = TextInputter(arrays, known, **context.options(split, batch_size))
    return found


def _windows(text: str, path: Path, vocabulary: Vocabulary, length: int, step: int) -> Array:
    """Return the windows of a text with the token after each, ``(windows, length + 1)``."""
    tokens = np.array(vocabulary.encode(text), np.int64)
    if len(tokens) <= length:
        raise InputError(
            f"{path}: found {len(tokens)} {vocabulary.unit}s; expected {length + 1} at least: a"
            " window, and what comes after it",
            hint="lower data.kwargs.length, or give a longer text",
        )
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::step]


def generate(
    model: NextToken,
    vocabulary: Vocabulary,
    prompt: str,
    count: int,
    *,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
    stop: str | None = None,
) -> str:
    """Let a model write on.

    Each token is drawn from the model's distribution of what comes after the last ``length``
    tokens; padding and unknown are never drawn. The same seed gives the same text.

    Args:
        model: gives the logits.
        vocabulary: what tokens are numbered by.
        prompt: how the text begins.
        count: tokens to draw.
        length: tokens that the model sees at most.
        temperature: what logits are divided by: below 1 the text is more usual, at 0 the most
            likely token is taken each time.
        seed: of what is drawn.
        stop: ends the text where this token is drawn; it is the last one.

    Returns:
        the prompt, and what was written.

    Raises:
        UsageError: an option is out of its range.
        InputError: the prompt is empty, or has a token that the vocabulary does not have.
        ModelError: the model returns something else than logits of tokens.
    """
    if not temperature >= 0 or count < 0 or length < 1:
        raise UsageError(
            f"found the temperature {temperature}, {count} tokens and windows of {length}; expected"
            " numbers from 0, and windows from 1"
        )
    tokens = vocabulary.encode(prompt)
    if not tokens:
        raise InputError(f"the prompt is empty; expected one {vocabulary.unit} at least")
    if UNKNOWN in tokens:
        raise InputError(
            f"the prompt {prompt!r}: {vocabulary.unit} {tokens.index(UNKNOWN) + 1} is not in the"
            f" vocabulary of {len(vocabulary)} {vocabulary.unit}s"
        )
    generator = np.random.default_rng(seed)
    for _ in range(count):
        logits = np.asarray(model(np.array([tokens[-length:]], np.int64)), np.float64)
        if logits.ndim != 3 or logits.shape[2] < len(vocabulary):
            raise ModelError(
                f"the model returned an array of shape {logits.shape}; expected logits (1, length,"
                f" tokens) of {len(vocabulary)} tokens"
            )
        tokens.append(_drawn(logits[0, -1, : len(vocabulary)], temperature, generator))
        if stop is not None and vocabulary.tokens[tokens[-1]] == stop:
            break
    return vocabulary.decode(tokens)


def _drawn(logits: Array, temperature: float, generator: np.random.Generator) -> int:
    """Return the number of a token, drawn by its logits."""
    logits = logits[UNKNOWN + 1 :]
    if not np.isfinite(logits).all():
        raise ModelError("the model returned logits that are not finite")
    if temperature == 0:
        return UNKNOWN + 1 + int(logits.argmax())
    weights = np.exp((logits - logits.max()) / temperature)
    # One uniform number a token, so that the text hardly depends on how the sum is rounded.
    place = np.searchsorted(np.cumsum(weights), generator.random() * weights.sum(), side="right")
    return UNKNOWN + 1 + min(int(place), len(weights) - 1)
