"""``runs clean``: remove the folders of runs; never one that is running, nor what is none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .runs import FINISHED, Run, find_run, list_runs, read_run, runs_folder

_SUFFIX = ".removed"
_QUIET_SECONDS = 600
"""A training run has no lock: one without a result that wrote something lately may be going on."""


@dataclass(frozen=True)
class CleanResult:
    """What was removed.

    Attributes:
        removed: the runs.
        kept: runs that were not removed, and why.
        dry_run: nothing was removed: they are those that would be.
    """

    removed: tuple[Run, ...]
    kept: tuple[tuple[Run, str], ...]
    dry_run: bool

    @property
    def size_bytes(self) -> int:
        """How much was freed."""
        return sum(run.size_bytes for run in self.removed)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute."""
        return {
            "dry_run": self.dry_run,
            "removed": [_entry(run) for run in self.removed],
            "kept": [{**_entry(run), "reason": reason} for run, reason in self.kept],
            "size_bytes": self.size_bytes,
        }


def _entry(run: Run) -> dict[str, Any]:
    values = run.to_dict()
    return {key: values[key] for key in ("name", "path", "state", "size_bytes")}


def clean_runs(
    names: Sequence[str | Path] = (),
    *,
    every: bool = False,
    dry_run: bool = False,
    force: bool = False,
) -> CleanResult:
    """Remove runs, with all that their folders hold.

    Args:
        names: as :func:`ingot.show_run` takes them; by default those in ``INGOT_HOME/runs`` that
            have finished: ``met``, ``missed``, ``trained``.
        every: without names: also those that could be resumed.
        dry_run: remove nothing.
        force: also a named folder outside of ``INGOT_HOME/runs``, and a training run without a
            result that wrote something in the last ten minutes. Never one that is searching.

    Raises:
        UsageError: a name is no run, or its run may not be removed; then nothing was.
    """
    if names and every:
        raise UsageError("found RUN and --all; expected one of them")
    removed: list[Run] = []
    kept: list[tuple[Run, str]] = []
    for run in _named(names) if names else list_runs():
        reason = _why_not(run, force)
        if not names and reason is None and not every and run.state not in FINISHED:
            reason = f"it is {run.state}"
        if reason is None:
            removed.append(run)
        elif names:
            raise UsageError(f"{run.path}: cannot be removed: {reason}")
        else:
            kept.append((run, reason))
    if not dry_run:
        for run in list(removed):
            if not _remove(run):
                removed.remove(run)
                kept.append((run, "it was taken up again"))
        _sweep()
    return CleanResult(tuple(removed), tuple(kept), dry_run)


def _named(names: Sequence[str | Path]) -> list[Run]:
    folders = dict.fromkeys(find_run(name).resolve() for name in names)
    return [read_run(folder) for folder in folders]


def _why_not(run: Run, force: bool) -> str | None:
    """Return why a run may not be removed, if it may not."""
    if run.process is not None or run.state == "running":
        number = f" (number {run.process})" if run.process else ""
        return f"a process{number} is searching in it"
    is_training = run.command == "train" and run.state == "unfinished"
    if is_training and not force and time.time() - run.changed < _QUIET_SECONDS:
        return "it wrote something in the last ten minutes and may be running (--force)"
    folder = run.path.resolve()
    if folder.parent == runs_folder().resolve():
        return None
    # A folder given with -o may be one in which the user works.
    for place, name in ((Path.cwd(), "the current folder"), (Path.home(), "the home folder")):
        if folder == place.resolve() or folder in place.resolve().parents:
            return f"{name} is in it" if folder != place.resolve() else f"it is {name}"
    if (folder / ".git").exists() or folder in runs_folder().resolve().parents:
        return "it holds more than a run"
    if not force:
        return f"it lies outside of {runs_folder()} (--force)"
    return None


def _remove(run: Run) -> bool:
    """Remove a folder; False when a process has begun to search in it."""
    from ..optimizers.journal import holder_of

    if holder_of(run.path) is not None:
        return False
    # Renamed first: half a run must not look like one.
    hidden = run.path.with_name(f".{run.path.name}.{os.getpid()}{_SUFFIX}")
    os.replace(run.path, hidden)
    shutil.rmtree(hidden)
    return True


def _sweep() -> None:
    """Remove what an interrupted cleaning left."""
    for folder in runs_folder().glob(f".*{_SUFFIX}"):
        shutil.rmtree(folder, ignore_errors=True)
