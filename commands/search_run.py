"""What every search does around its own work: folder, journal, resuming, signals, documents."""

from __future__ import annotations

import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..errors import IngotError, UsageError
from ..runtime.atomic import replacing
from .search_folder import REPORT, VERDICT, discard_run, prepare_folder, run_folder
from .search_result import are_there
from .signals import on_signals

if TYPE_CHECKING:
    from ..optimizers.budget import Budget, Forecast
    from ..optimizers.journal import Journal
    from ..optimizers.verdict import Verdict
    from ..specs import ModelSpec
    from ..training.problem import Problem
    from .compress_live import LiveModel

Progress = Callable[[str], None]
Watch = Callable[["Budget", "Forecast"], None]

_MEASURED = ("baseline", "reference")
"""Records from which on a run is worth keeping."""
RESERVED = 2
"""Evaluations that are kept for the files that ship."""


class Settings(Protocol):
    """What the settings of every search say."""

    @property
    def target(self) -> str: ...
    @property
    def delta(self) -> float: ...
    @property
    def eval_split(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def dry_run(self) -> bool: ...


class Asked(Protocol):
    """What the options of every search say of its folder."""

    @property
    def output(self) -> Path | None: ...
    @property
    def resume(self) -> bool: ...
    @property
    def fresh(self) -> bool: ...
    @property
    def dry_run(self) -> bool: ...


class SearchRun(ABC):
    """One search, from its settled options to its verdict; subclasses say what is searched.

    Args:
        problem: the model that was given, its data and evaluation.
        settings: of the search.
        max_evaluations: of models on the evaluation split.
        options: what the caller asked for: folder, and whether to go on or to start over.
        report: called with a line for each thing that happens.
        watch: called with the budget and the forecast when the search begins.
        live: objects in place of what the spec would name. Such a search goes on by itself when it
            is started again.
    """

    command: ClassVar[str]

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        max_evaluations: int,
        options: Asked,
        report: Progress,
        watch: Watch | None,
        live: LiveModel | None = None,
    ) -> None:
        self.problem = problem
        self.settings = settings
        self.max_evaluations = max_evaluations
        self.asked = options
        self.report = report
        self.watch = watch
        self.live = live

    @property
    def spec(self) -> ModelSpec:
        """The spec of the model that was given."""
        return self.problem.spec

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what has to be the same when the search is resumed, by kind.

        ``data`` is None where nobody can tell whether that is the same; ``model`` and ``versions``
        are there as well.
        """

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Return the settings that the journal, and the report, tell of."""

    @abstractmethod
    def result_key(self, folder: Path) -> str:
        """Return what tells results that are written in other ways from each other."""

    @abstractmethod
    def find(self, journal: Journal, budget: Budget) -> Verdict:
        """Measure the reference, search, ship the result, and say how it went."""

    def reads(self) -> Sequence[Path]:
        """Return files that the search reads, and which are in no spec."""
        return ()

    def _flags(self, identity: Mapping[str, Any]) -> tuple[bool, bool]:
        """Return whether to resume, and whether to start over."""
        if self.live is None:
            return self.asked.resume, self.asked.fresh
        # Nobody is there to say which; what cannot go on starts over.
        fresh = self.asked.dry_run or identity["data"] is None
        return not fresh, fresh

    def search(self) -> Verdict:
        """Search, or go on with a search.

        Raises:
            UsageError: the folder holds another search.
        """
        from ..optimizers.journal import JOURNAL, Journal
        from ..optimizers.run_key import hash_of

        identity = self.identity()
        resume, fresh = self._flags(identity)
        home = None if self.live is None else self.live.home
        key = hash_of(identity)
        folder = run_folder(self.command, self.spec.name, self.asked.output, key, home)
        was_there, is_new = folder.is_dir(), not (folder / JOURNAL).exists()
        prepare_folder(folder, resume, fresh, self.problem, self.reads())
        is_worthless = False
        try:
            with Journal(folder) as journal:
                try:
                    return self._search(journal, identity)
                except IngotError:
                    has_some = any(it["kind"] in _MEASURED for it in journal.records)
                    is_worthless = is_new and not has_some
                    raise
        finally:
            if is_worthless:
                discard_run(folder, self.problem, was_there)

    def _search(self, journal: Journal, identity: dict[str, Any]) -> Verdict:
        from ..optimizers.budget import Budget
        from ..optimizers.run_key import require_same

        first = journal.find("run")
        if first is None:
            self._begin(journal, identity)
        else:
            if identity["data"] is None:
                raise UsageError(
                    f"{journal.folder}: cannot be resumed: the data gives something else each time"
                    " it is read, so nobody can tell whether it is the same",
                    hint="name it with run_key in the spec, or --fresh starts over",
                )
            require_same(first["identity"], identity, journal.folder)
            self.report(f"going on with {journal.folder}")
        before = max((record.get("elapsed", 0.0) for record in journal.records), default=0.0)
        budget = Budget(self.max_evaluations, reserved=RESERVED, before=before)

        def stop() -> bool:
            is_first = budget.request_stop()
            if is_first:
                self.report("stopping after the present step (once more ends at once)")
            return is_first

        with on_signals(stop):
            key = self.result_key(journal.folder)
            ended = _finished(journal, key)
            if ended is not None:
                self._write_documents(journal, ended.to_dict())
                return ended
            verdict = self.find(journal, budget)
        document = verdict.to_dict()
        journal.append("verdict", result=key, document=document)
        self._write_documents(journal, document)
        return verdict

    def _begin(self, journal: Journal, identity: dict[str, Any]) -> None:
        settings = self.settings
        if identity["data"] is None:
            logging.getLogger("ingot").warning(
                "the data gives something else each time it is read: a search that is interrupted"
                " cannot be resumed (run_key in the spec would name the data)"
            )
        journal.append(
            "run",
            format=1,
            key=identity["model"][:12],
            command=self.command,
            model=self.spec.name,
            target=settings.target,
            delta=settings.delta,
            settings={
                **self.described(),
                "eval_split": settings.eval_split,
                "dry_run": settings.dry_run,
            },
            seed=settings.seed,
            versions=identity["versions"],
            started=time.time(),
            identity=identity,
        )

    def _write_documents(self, journal: Journal, document: Mapping[str, Any]) -> None:
        with replacing(journal.folder / VERDICT) as part:
            part.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
        from ..reports.html import search_report

        with replacing(journal.folder / REPORT) as part:
            part.write_text(search_report(journal.records, document), encoding="utf-8")


def phases_so_far(journal: Journal) -> dict[str, float]:
    """Return the seconds by phase that earlier parts of a search took, as far as they ended."""
    record = next((it for it in reversed(journal.records) if it["kind"] == "verdict"), None)
    return {} if record is None else dict(record["document"].get("phases") or {})


def _finished(journal: Journal, result: str) -> Verdict | None:
    """Return the verdict of a search that has converged; one that a cap ended may go on."""
    from ..optimizers.verdict import Verdict

    records = [record for record in journal.records if record["kind"] == "verdict"]
    if not records or records[-1].get("result") != result:
        return None
    if records[-1]["document"]["stopped_by"] != "converged":
        return None
    found = Verdict.from_dict(records[-1]["document"])
    if not are_there(found.artifacts + found.reference_artifacts):
        return None
    return found
