"""Rows of CSV files without a header, whose columns name files beside it or in a zip."""

from __future__ import annotations

import csv
import io
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, SpecError
from ..frameworks.base import first_line
from ..runtime.sources import shown_path

_OTHER_DELIMITERS = (";", "\t", "|")


class Archive:
    """The members of a zip, read from several threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        try:
            with zipfile.ZipFile(path) as opened:
                self.names = frozenset(opened.namelist())
        except OSError as error:
            raise InputError(f"{self.label}: {error.strerror or error}") from error
        except Exception as error:
            raise InputError(
                f"{self.label}: not a zip that can be read: {reason(error)}"
            ) from error

    @property
    def label(self) -> str:
        """What messages call it."""
        return shown_path(self.path)

    def read(self, name: str) -> bytes:
        """Return the bytes of a member.

        Raises:
            InputError: it is damaged, encrypted or packed in a way that is not known.
        """
        try:
            opened = getattr(self._local, "opened", None)
            if opened is None:
                opened = self._local.opened = zipfile.ZipFile(self.path)
            found: bytes = opened.read(name)
        except Exception as error:  # zipfile lets through what zlib, bz2 and lzma raise
            raise InputError(f"{self.label}: {name}: cannot be read: {reason(error)}") from error
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _local=threading.local())


@dataclass(frozen=True)
class Row:
    """One row of a CSV.

    Attributes:
        columns: its texts; of the first ones, which name files, the whole paths.
        where: the CSV and the number of the row, from 1, for messages.
        written: the first column as it stands there.
    """

    columns: tuple[str, ...]
    where: str
    written: str = ""

    @property
    def path(self) -> str:
        """The first file, or member of the archive."""
        return self.columns[0]

    def shown(self, column: int = 0) -> str:
        """What messages call a file: without a row that names it, as it was given."""
        return shown_path(self.columns[column]) if self.where else self.columns[column]


def read_rows(
    root: Path,
    names: str,
    columns: Sequence[str] | None,
    archive: Archive | None = None,
    files: int = 1,
) -> list[Row]:
    """Read the rows of one or more CSVs.

    Args:
        root: the folder that the CSVs are meant from; what they name is meant from their own.
        names: a CSV, or several with commas between.
        columns: what the columns are called, in messages; a row has as many. None takes any.
        archive: a zip that holds the files, and perhaps the CSVs.
        files: how many of the first columns name files, which have to be there.

    Raises:
        InputError: a CSV is not there, or has no rows; a row has another number of columns, or
            names a missing file (the message has its number, from 1, and the path).
        SpecError: a CSV is neither there nor in the archive.
    """
    return [
        row
        for name in names.split(",")
        for row in _rows_of(root, name.strip(), columns, archive, files)
    ]


def _rows_of(
    root: Path, name: str, columns: Sequence[str] | None, archive: Archive | None, files: int
) -> list[Row]:
    data, label, folder = _content(root, name, archive)
    expected = "a path" if columns is None else ",".join(columns)
    rows: list[Row] = []
    for number, entry in _entries(data, label):
        where = f"{label}: row {number}"
        if columns is not None and len(entry) != len(columns):
            raise InputError(f"{where}: {_found(entry, columns)}; expected {expected}")
        texts = [text.strip() for text in entry]
        written = texts[0]
        for index in range(files):
            texts[index] = os.path.join(folder, texts[index]) if folder else texts[index]
            path = texts[index]
            if not (path in archive.names if archive is not None else os.path.isfile(path)):
                place = f"{archive.label}: {path}" if archive is not None else shown_path(path)
                hint = _hint(entry[index], is_first=not rows)
                raise InputError(f"{where}: {place}: no such file", hint=hint)
        rows.append(Row(tuple(texts), where, written))
    if not rows:
        raise InputError(f"{label}: found no rows; expected {expected}")
    return rows


def _content(root: Path, name: str, archive: Archive | None) -> tuple[bytes, str, str]:
    """Return the bytes of a CSV, what messages call it, and the folder that its paths start in."""
    path = root / Path(name).expanduser()
    if archive is not None and not path.is_file() and name in archive.names:
        return archive.read(name), f"{archive.label}/{name}", name.rpartition("/")[0]
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        message = f"{shown_path(path)}: no such file"
        if archive is not None:
            raise SpecError(f"{message}, and none {name!r} in {archive.label}") from error
        raise InputError(message) from error
    except OSError as error:
        raise InputError(f"{shown_path(path)}: {error.strerror}") from error
    return data, shown_path(path), "" if archive is not None else str(path.parent)


def _hint(text: str, is_first: bool) -> str | None:
    """Say why what stands in a row may be no file: other delimiters, or a header."""
    for delimiter in _OTHER_DELIMITERS:
        if delimiter in text:
            return f"columns are divided by ','; found {delimiter!r} in {text.strip()!r}"
    if is_first and not os.path.splitext(text.strip())[1]:
        return f"rows have no header: take out the first row, if {text.strip()!r} is one"
    return None


def _found(entry: Sequence[str], columns: Sequence[str]) -> str:
    """Say what a row has in place of the columns, and by what it was divided."""
    found = f"found {len(entry)} column{'s' if len(entry) > 1 else ''}"
    if len(entry) == 1:
        for delimiter in _OTHER_DELIMITERS:
            if entry[0].count(delimiter) == len(columns) - 1 > 0:
                return f"{found}, divided by {delimiter!r} in place of ','"
    return found


def _entries(data: bytes, label: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number, from 1, and columns of each row of a CSV that is not empty."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{label}: row {row}: found the byte {data[error.start]:#04x}; expected UTF-8",
            hint="write the file anew as UTF-8",
        ) from error
    number = 0
    try:
        for number, entry in enumerate(csv.reader(io.StringIO(text)), start=1):
            if entry:
                yield number, entry
    except csv.Error as error:
        raise InputError(f"{label}: row {number + 1}: cannot be read: {error}") from error


def reason(error: BaseException) -> str:
    """Return what went wrong, in one line; many errors of decoders have no text."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
