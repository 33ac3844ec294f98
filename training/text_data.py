"""Texts as tokens: files of them, and the vocabulary of words or characters."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from ..errors import InputError, SpecError
from ..runtime.atomic import replacing
from ..runtime.sources import shown_path

if TYPE_CHECKING:
    from .data import DataContext

Unit = Literal["word", "character"]

PADDING, UNKNOWN = 0, 1
"""Tokens that every vocabulary begins with: what fills a text up, and what it does not have."""

VOCABULARY = "vocabulary.json"
"""Name of the file in the folder of a run."""

_SPECIAL = ("<padding>", "<unknown>")
_FORMAT_VERSION = 1
_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Return the words of a text, and its punctuation marks, in their order."""
    return _WORDS.findall(text)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a network knows; a token's number is its place.

    Attributes:
        unit: what a token is, a word or a character.
        lowercase: texts are put into lower case.
        tokens: the first two are padding and unknown; the others are sorted by how often they
            occur, then by the alphabet.
    """

    unit: Unit
    lowercase: bool
    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        numbers = {token: number for number, token in enumerate(self.tokens)}
        object.__setattr__(self, "_numbers", numbers)

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(
        cls,
        texts: Iterable[str],
        unit: Unit,
        label: str,
        *,
        lowercase: bool = False,
        most: int | None = None,
        least_count: int = 1,
    ) -> Vocabulary:
        """Collect the tokens of texts.

        Args:
            texts: of the training split.
            unit: what a token is.
            label: what messages call the texts.
            lowercase: put them into lower case.
            most: size of the vocabulary at most, padding and unknown included.
            least_count: tokens that occur less often are unknown.

        Raises:
            InputError: nothing is left.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(split_text(text, unit, lowercase))
        found = [token for token, count in counts.items() if count >= least_count]
        found.sort(key=lambda token: (-counts[token], token))
        if not found:
            rare = f" that occurs {least_count} times" if counts else ""
            raise InputError(
                f"{label}: the vocabulary is empty: found no {unit}{rare}; expected one at least",
                hint="lower least_count" if counts else None,
            )
        return cls(unit, lowercase, (*_SPECIAL, *found)[:most])

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read what :meth:`write` wrote.

        Raises:
            InputError: the file cannot be read, or is no vocabulary, or an empty one.
        """
        try:
            found = json.loads(read_text(path))
        except ValueError as error:
            raise InputError(f"{path}: no JSON that can be read: {error}") from error
        if not isinstance(found, dict) or found.get("format_version") != _FORMAT_VERSION:
            raise InputError(
                f"{path}: found no vocabulary; expected the {VOCABULARY} that a training run"
                f" wrote, of format_version {_FORMAT_VERSION}"
            )
        keys = ("unit", "lowercase", "tokens")
        unit, lowercase, tokens = (cast("Any", found.get(key)) for key in keys)
        is_text = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
        if unit not in get_args(Unit) or not isinstance(lowercase, bool) or not is_text:
            raise InputError(
                f"{path}: expected unit ({' or '.join(get_args(Unit))}), lowercase (true or false)"
                " and tokens (a list of texts)"
            )
        if len(tokens) <= len(_SPECIAL) or tuple(tokens[: len(_SPECIAL)]) != _SPECIAL:
            raise InputError(
                f"{path}: the vocabulary is empty: found the tokens {tokens[:3]}; expected"
                f" {', '.join(_SPECIAL)} and others"
            )
        if len(set(tokens)) != len(tokens):
            twice = next(token for token, count in Counter(tokens).items() if count > 1)
            raise InputError(f"{path}: found the token {twice!r} twice")
        return cls(unit, lowercase, tuple(tokens))

    def write(self, path: Path) -> None:
        """Write it as JSON, in one piece."""
        values = {
            "format_version": _FORMAT_VERSION,
            "unit": self.unit,
            "lowercase": self.lowercase,
            "tokens": list(self.tokens),
        }
        text = json.dumps(values, ensure_ascii=False, indent=1) + "\n"
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, as numbers; those that are not known are ``UNKNOWN``."""
        numbers: dict[str, int] = vars(self)["_numbers"]
        return [
            numbers.get(token, UNKNOWN) for token in split_text(text, self.unit, self.lowercase)
        ]

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the text of tokens; words have a space between, padding is left out."""
        joint = " " if self.unit == "word" else ""
        return joint.join(self.tokens[number] for number in numbers if number != PADDING)


def known_vocabulary(context: DataContext, name: str | None) -> Vocabulary | None:
    """Return the vocabulary that a run kept, which the weights of a network belong to.

    Args:
        context: of the data.
        name: its file; the one beside the weights by default.

    Returns:
        None where there is none: it is made of the training split.

    Raises:
        SpecError: the file is not there, or the network has too few embeddings.
        InputError: it is no vocabulary.
    """
    if name is not None:
        path = context.require(name, "vocabulary")
    elif context.weights is not None and (context.weights.parent / VOCABULARY).is_file():
        path = Path(shown_path(context.weights.parent / VOCABULARY))
    else:
        return None
    found = Vocabulary.read(path)
    require_embeddings(found, context)
    return found


def require_embeddings(vocabulary: Vocabulary, context: DataContext) -> None:
    """Check that a network, as far as it says, has an embedding for each token.

    Raises:
        SpecError: it has fewer.
    """
    if context.tokens is None or len(vocabulary) <= context.tokens:
        return
    raise SpecError(
        f"{context.label}: the vocabulary has {len(vocabulary)} tokens, and the network embeddings"
        f" for {context.tokens} (its argument tokens); expected as many at least",
        hint=f"let the network have {len(vocabulary)}, or leave out rare ones with"
        f" {context.key}.most_tokens: {context.tokens}",
    )


def split_text(text: str, unit: Unit, lowercase: bool) -> list[str]:
    """Return the tokens of a text, in Unicode's composed form (NFC)."""
    text = unicodedata.normalize("NFC", text)
    if lowercase:
        text = text.lower()
    return words_of(text) if unit == "word" else list(text)


def unit_of(name: str, label: str, key: str) -> Unit:
    """Return what a token is.

    Raises:
        SpecError: it is neither a word nor a character.
    """
    for unit in get_args(Unit):
        if name == unit:
            found: Unit = unit
            return found
    raise SpecError(f"{label}: {key}: found {name!r}; expected {' or '.join(get_args(Unit))}")


def read_text(path: Path) -> str:
    """Return the content of a file, with ``\\n`` at the ends of its lines.

    Raises:
        InputError: it cannot be read, or is not UTF-8: the message has the row, from 1, and the
            place of the byte in the file, from 0.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    return decoded(data, str(path)).replace("\r\n", "\n")


def decoded(data: bytes, label: str) -> str:
    """Return bytes of UTF-8, with or without a mark at their beginning, as text.

    Raises:
        InputError: they are something else.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        row = data.count(b"\n", 0, start) + 1
        raise InputError(
            f"{label}: row {row}: found the byte {data[start]:#04x} at {start}; expected UTF-8",
            hint="write the file anew as UTF-8",
        ) from error


def rows_of(text: str) -> Iterable[tuple[int, str]]:
    """Yield number, from 1, and content of each row that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def paths_of(names: str, root: Path) -> list[Path]:
    """Return the files of a split, as messages call them: one name, or several with commas."""
    return [Path(shown_path(root / Path(name.strip()).expanduser())) for name in names.split(",")]


def require_length(tokens: Sequence[int], where: str, length: int, unit: Unit) -> None:
    """Check that a text has tokens, and not too many.

    Raises:
        InputError: it has none, or more than ``length``.
    """
    if not tokens:
        raise InputError(f"{where}: found a text without any {unit}; expected one at least")
    if len(tokens) > length:
        raise InputError(
            f"{where}: found a text of {len(tokens)} {unit}s; expected {length} at most",
            hint="raise length, or let truncate: true leave out what comes after",
        )
