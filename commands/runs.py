"""``runs``: what lies in the folders of searches and of training runs, and how to be rid of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import IngotError, ModelError, UsageError
from ..runtime.home import ingot_home

State = Literal[
    "running", "met", "missed", "interrupted", "unfinished", "trained", "tuned", "damaged"
]
FINISHED = ("met", "missed", "trained", "tuned")

_POLL = 0.5
"""Seconds between two looks at a journal that is followed."""


@dataclass(frozen=True)
class Run:
    """A search or a training run, in a line.

    Attributes:
        name: of its folder.
        path: of its folder.
        command: ``compress``, ``quantize``, ``train``, ``tune``; empty when the journal
            does not say yet.
        model: name of the model.
        state: ``running``; how it ended (``met``, ``missed``, ``interrupted``, ``trained``,
            ``tuned``);
            ``unfinished``: killed, or a training run that has no result yet; ``damaged``.
        target: ``size`` or ``latency``; empty for training.
        ratio: how many times smaller (or faster) the best so far is; of its file when the search
            has ended, of its parameters before.
        drop: of that model.
        evaluations: how many there were; of a search that goes on, its trials.
        size_bytes: of everything in the folder.
        started: when, in seconds since 1970.
        changed: when anything in the folder was last written.
        process: number of the process that is searching; None when there is none.
    """

    name: str
    path: Path
    command: str
    model: str
    state: State
    target: str
    ratio: float | None
    drop: float | None
    evaluations: int | None
    size_bytes: int
    started: float
    changed: float
    process: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; the path is absolute."""
        return {
            "name": self.name,
            "path": str(self.path.absolute()),
            "command": self.command,
            "model": self.model,
            "state": self.state,
            "target": self.target or None,
            "ratio": self.ratio,
            "drop": self.drop,
            "evaluations": self.evaluations,
            "size_bytes": self.size_bytes,
            "started": self.started,
            "changed": self.changed,
            "process": self.process,
        }


@dataclass(frozen=True)
class RunDetails:
    """All that is known of a run.

    Attributes:
        run: it in a line.
        records: of its journal, in their order; none for training.
        verdict: how the search ended; empty when it did not.
        training: the document ``train.json``; empty for a search, or without a result.
        tuning: the document ``tune.json``, of a search of hyper-parameters.
    """

    run: Run
    records: tuple[Mapping[str, Any], ...] = ()
    verdict: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trials(self) -> list[Mapping[str, Any]]:
        """The records of trials."""
        return [record for record in self.records if record["kind"] == "trial"]

    def record(self, kind: str) -> Mapping[str, Any]:
        """Return the last record of a kind; empty when there is none."""
        return last_record(self.records, kind)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute."""
        run, skipped = self.record("run"), ("kind", "name")
        reference = {k: v for k, v in self.record("reference").items() if k not in skipped}
        forecast = {k: v for k, v in self.record("forecast").items() if k not in skipped}
        return {
            **self.run.to_dict(),
            "delta": run.get("delta"),
            "seed": run.get("seed"),
            "settings": run.get("settings"),
            "versions": run.get("versions"),
            "reference": reference or None,
            "forecast": forecast or None,
            "trials": [{k: v for k, v in it.items() if k != "kind"} for it in self.trials],
            "verdict": dict(self.verdict) or None,
            "training": dict(self.training) or None,
            "tuning": dict(self.tuning) or None,
        }


def runs_folder() -> Path:
    """Return where runs lie that are given no folder: ``INGOT_HOME/runs``."""
    return ingot_home() / "runs"


def list_runs() -> list[Run]:
    """Return the runs in ``INGOT_HOME/runs``, the newest first."""
    folder = runs_folder()
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if is_run(path) and path.name[0] != "."]
    return sorted(map(read_run, found), key=lambda run: (-run.started, run.name))


def show_run(name: str | Path) -> RunDetails:
    """Return all that is known of a run.

    Args:
        name: its folder, or its name in ``INGOT_HOME/runs``, or a beginning that only it has.

    Raises:
        UsageError: there is no such run, or there are several.
        ModelError: its journal is damaged.
    """
    return _details(find_run(name))


def follow_run(
    name: str | Path,
    report: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], None],
    *,
    poll: float = _POLL,
) -> RunDetails:
    """Report the trials of a search as they come, until it ends or its process is gone.

    Args:
        name: as :func:`show_run` takes it.
        report: called with all records so far and each trial, those of before included.
        poll: seconds between two looks at the journal.

    Raises:
        UsageError: there is no such run, there are several, or it is no search.
        ModelError: its journal is damaged.
    """
    from ..optimizers.journal import JOURNAL, holder_of, read_journal

    folder = find_run(name)
    if not (folder / JOURNAL).is_file():
        raise UsageError(
            f"{folder}: found a training run; expected a search, which has trials to follow",
            hint=f"ingot runs show {folder.name}",
        )
    seen, is_new = 0, False
    while True:
        # Asked first: what the process wrote before it went is then in what is read.
        is_held = holder_of(folder) is not None
        records = read_journal(folder)
        if len(records) < seen:  # begun anew
            seen = 0
        for record in records[seen:]:
            if record["kind"] == "trial":
                report(records, record)
        is_over = is_new and any(record["kind"] == "verdict" for record in records[seen:])
        seen, is_new = len(records), True
        if is_over or not is_held:
            return _details(folder)
        time.sleep(poll)


def find_run(name: str | Path) -> Path:
    """Return the folder of a run.

    Args:
        name: its folder, or its name in ``INGOT_HOME/runs``, or a beginning that only it has.

    Raises:
        UsageError: there is no such run, or there are several, or the folder holds none.
    """
    text, home = str(name), runs_folder()
    path = Path(name).expanduser()
    is_path = os.sep in text or text in (".", "..") or text.startswith("~")
    named = home / text
    if text and not is_path and is_run(named):
        return named
    if text and path.is_dir() and (is_path or is_run(path)):
        if is_run(path):
            return path
        raise UsageError(
            f"{path}: found a folder without a journal or a result of training; expected a run",
            hint="ingot runs list",
        )
    if is_path:
        raise UsageError(f"{path}: no such run", hint="ingot runs list")
    folders = home.iterdir() if home.is_dir() else iter(())
    found = sorted(it for it in folders if text and it.name.startswith(text) and is_run(it))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(it.name for it in found[:4]) + (", ..." if len(found) > 4 else "")
        raise UsageError(f"{text!r}: found {len(found)} runs ({names}); expected one")
    raise UsageError(f"{text!r}: no such run in {home}", hint="ingot runs list")


def is_run(path: Path) -> bool:
    """Say whether a folder is that of a run: one that Ingot wrote."""
    from ..optimizers.journal import JOURNAL

    try:
        if path.is_symlink() or not path.is_dir():
            return False
        if (path / JOURNAL).is_file():
            return _starts_as_journal(path / JOURNAL)
        names = ("train.json", "study.json")
        return any((path / name).is_file() for name in names) or any(_checkpoints(path))
    except OSError:
        return False


def _starts_as_journal(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(200)
    return not start or (start.lstrip().startswith(b"{") and b'"kind"' in start)


def _checkpoints(folder: Path) -> Iterator[Path]:
    return folder.glob("checkpoint-*.safetensors")


def read_run(folder: Path) -> Run:
    """Return a run in a line; one that cannot be read is ``damaged``."""
    from ..optimizers.journal import holder_of

    try:
        return _details(folder).run
    except (IngotError, OSError, TypeError, AttributeError):
        size, changed = measure(folder)
        return Run(
            folder.name,
            folder,
            "",
            "",
            "damaged",
            "",
            None,
            None,
            None,
            size,
            changed,
            changed,
            holder_of(folder),
        )


def last_record(records: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """Return the last record of a kind; empty when there is none."""
    return next((record for record in reversed(records) if record["kind"] == kind), {})


def _details(folder: Path) -> RunDetails:
    from ..optimizers.journal import JOURNAL, holder_of, read_journal

    if not (folder / JOURNAL).is_file():
        if (folder / "study.json").is_file():
            from .runs_tune import study_details

            return study_details(folder)
        return _training(folder)
    process = holder_of(folder)
    records = read_journal(folder)
    begun = last_record(records, "run")
    trials = [record for record in records if record["kind"] == "trial"]
    # What follows the verdict of an earlier part says that the search was taken up again.
    is_ended = bool(records) and records[-1]["kind"] == "verdict"
    verdict = (last_record(records, "verdict").get("document") or {}) if is_ended else {}
    state: State = "running" if process is not None else verdict.get("verdict") or "unfinished"
    target = str(begun.get("target") or verdict.get("target") or "")
    ratio, drop = best_so_far(records, target, verdict)
    size, changed = measure(folder)
    run = Run(
        folder.name,
        folder,
        str(begun.get("command") or verdict.get("command") or ""),
        str(begun.get("model") or ""),
        state,
        target,
        ratio,
        drop,
        verdict.get("evaluations", len(trials)),
        size,
        float(begun.get("started") or changed),
        changed,
        process,
    )
    return RunDetails(run, tuple(records), verdict)


def best_so_far(
    records: Sequence[Mapping[str, Any]], target: str, verdict: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Return ratio and drop of the result, or else of the best trial that was accepted."""
    is_latency = target == "latency"
    if verdict:
        return verdict.get("latency_ratio" if is_latency else "size_ratio"), verdict.get("drop")
    from ..reports.search import size_measure

    command = last_record(records, "run").get("command")
    key = "latency_ms" if is_latency else size_measure(command)
    base = (last_record(records, "reference").get("measured") or {}).get(key)
    accepted = [
        record
        for record in records
        if record["kind"] == "trial" and record.get("status") == "accepted" and record.get(key)
    ]
    if not base or not accepted:
        return None, None
    best = min(accepted, key=lambda record: record[key])
    return base / best[key], best.get("drop")


def _training(folder: Path) -> RunDetails:
    result = folder / "train.json"
    document: Mapping[str, Any] = {}
    size, changed = measure(folder)
    written = [path.stat().st_mtime for path in _checkpoints(folder)]
    is_done = result.is_file()
    if is_done:
        try:
            document = json.loads(result.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{result}: found no JSON; the file is damaged") from error
        # A run that goes on after its result was written has newer checkpoints.
        is_done = not any(when > result.stat().st_mtime + 1 for when in written)
    begun = min([changed, *written])
    if document.get("elapsed_seconds"):
        begun = min(begun, result.stat().st_mtime - document["elapsed_seconds"])
    state: State = "trained" if is_done else "unfinished"
    model = str(document.get("name") or folder.name.removeprefix("train-").rpartition("-")[0])
    run = Run(
        folder.name, folder, "train", model, state, "", None, None, None, size, begun, changed
    )
    return RunDetails(run, training=document)


def measure(folder: Path) -> tuple[int, float]:
    """Return the size of all files, and when the newest was written."""
    size, changed = 0, folder.stat().st_mtime
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = (Path(parent) / name).lstat()
            except OSError:  # a file that was renamed into place meanwhile
                continue
            size += status.st_size
            changed = max(changed, status.st_mtime)
    return size, changed
