"""The journal of a search: one JSON line for everything that was found out, safe on disk.

A search is a function of its journal: what a record says is never done again, and what no record
says was not done. So a search that was killed ends, when it is resumed, as if it had not been.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import ModelError, UsageError

JOURNAL = "journal.jsonl"
LOCK = "lock"
FORMAT = 1
"""Version of the journal's records."""

Record = dict[str, Any]


class Journal:
    """The journal in a run's folder, locked against other processes while it is open.

    Args:
        folder: of the run; it exists.

    Raises:
        UsageError: another process has it open.
        ModelError: it is damaged, other than by a torn last line, which is dropped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self._lock = _locked(folder / LOCK)
        try:
            self.records = _repaired(self.path)
            self._file = self.path.open("ab")
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have it."""
        self._file.close()
        self._lock.close()

    def find(self, kind: str, name: str = "", **values: Any) -> Record | None:
        """Return the first record of a kind and name, with these values, if it was written."""
        wanted = {"kind": kind, "name": name, **values}
        for record in self.records:
            if all(record.get(key) == value for key, value in wanted.items()):
                return record
        return None

    def append(self, kind: str, name: str = "", **values: Any) -> Record:
        """Write a record, and return when it is on the disk.

        Raises:
            UsageError: the disk refuses it; then nothing of it is left.
        """
        line = json.dumps({"kind": kind, "name": name, **values}, allow_nan=False) + "\n"
        size = self.path.stat().st_size
        try:
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self.path, size)
            raise UsageError(
                f"{self.path}: cannot be written to: {error.strerror}",
                hint="make room, then go on with --resume",
            ) from error
        record: Record = json.loads(line)
        self.records.append(record)
        return record


def read_journal(folder: Path) -> list[Record]:
    """Return the records of a run that may be going on; a line that is being written is left out.

    Raises:
        ModelError: it is damaged.
    """
    return _parsed(folder / JOURNAL)[0]


def holder_of(folder: Path) -> int | None:
    """Return the process that has a run's journal open, if there is one."""
    try:
        file = (folder / LOCK).open("rb")
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = file.read().decode(errors="replace").strip()
            return int(text) if text.isdigit() else 0
    return None


def _locked(path: Path) -> Any:
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        number = file.read().decode(errors="replace").strip()
        file.close()
        who = f" (number {number})" if number else ""
        raise UsageError(
            f"{path.parent}: another process{who} is searching in this folder",
            hint="wait for it, watch it with 'ingot runs show --follow', or give another -o RUNDIR",
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file


def _parsed(path: Path) -> tuple[list[Record], int]:
    """Return the records, and how many bytes of the file they are."""
    if not path.exists():
        return [], 0
    records: list[Record] = []
    size = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, Mapping) or not {"kind", "name"} <= record.keys():
            raise ModelError(
                f"{path}:{number}: found no record; the journal was changed or is damaged",
                hint="--fresh removes it and starts over",
            )
        records.append(dict(record))
        size += len(line)
    return records, size


def _repaired(path: Path) -> list[Record]:
    records, size = _parsed(path)
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)
    return records
