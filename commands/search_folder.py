"""The folder of a search: where it is, what belongs to the search in it, what it must not touch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError, OutputExistsError, UsageError
from ..runtime.home import ingot_home
from ..specs import ModelSpec
from .search_result import BASELINE, shipped_results
from .shipping import GOLDEN, OPTIMIZED, REFERENCE

if TYPE_CHECKING:
    from ..training.problem import Problem

VERDICT, REPORT = "verdict.json", "report.html"
OWN = ("drafts", "journal.jsonl", "trials", BASELINE, GOLDEN, REPORT, VERDICT)
FLOAT = "float_model"
"""Start of the names of float files that a result is made of, but not compared with."""
OWN_STEMS = (OPTIMIZED, REFERENCE, FLOAT)
OWN_SUFFIXES = (".json", ".safetensors", ".ingot")
"""What a search writes into its folder."""


def run_folder(
    command: str, name: str, output: Path | None, key: str, home: Path | None = None
) -> Path:
    """Return the folder of a run: the one that is given, or one in ``INGOT_HOME`` by its key."""
    from ..runtime.detect import expand

    if output is not None:
        return expand(output)
    home = home or ingot_home()
    return home / "runs" / f"{command}-{name}-{key[:12]}"


def prepare_folder(
    folder: Path, resume: bool, fresh: bool, problem: Problem, reads: Sequence[Path] = ()
) -> None:
    """Make the folder of a run, and remove an earlier run when asked to.

    Args:
        folder: of the run.
        resume: go on with a search.
        fresh: remove a search, and start over.
        problem: what is searched.
        reads: further files that the search reads.

    Raises:
        UsageError: it holds one and neither ``resume`` nor ``fresh`` is given, or something else
            lies there, or what is searched lies where its result would.
        OutputExistsError: files lie there, or in ``export.kwargs.root_path``, that no search of
            this folder wrote.
    """
    from ..optimizers.journal import JOURNAL, holder_of

    spec, source = problem.spec, problem.source
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: found a file; expected a folder")
    for path in (spec.path, source.path, source.weights, *_golden(spec), *reads):
        if path is not None and path.resolve().parent == folder.resolve() and _is_own(path.name):
            raise UsageError(
                f"-o {folder}: the search would replace {path.name}, which it reads",
                hint="give another folder with -o",
            )
    exports = spec.export.kwargs.root_path if spec.export is not None else None
    if (folder / JOURNAL).exists():
        require_way(folder, resume, fresh)
        if fresh and holder_of(folder) is None:
            _remove_run(folder)
    else:
        for place in (folder, exports):
            for path in sorted(place.iterdir()) if place is not None and place.is_dir() else ():
                if path.name.startswith(OWN_STEMS) or (place == folder and _is_own(path.name)):
                    raise OutputExistsError(
                        f"{path}: is there already, and no search in {folder} wrote it",
                        hint="remove it, or give another folder",
                    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made: {error.strerror}") from error


def require_way(folder: Path, resume: bool, fresh: bool) -> None:
    """Refuse to touch an earlier search without being told how.

    Raises:
        UsageError: it is neither to go on nor to start over.
    """
    if not (resume or fresh):
        raise UsageError(
            f"{folder}: holds the journal of an earlier search; expected --resume or --fresh",
            hint="--resume goes on with it, --fresh removes it and starts over",
        )


def discard_run(folder: Path, problem: Problem, was_there: bool) -> None:
    """Remove a run that ended with an error before anything was measured; there is nothing to keep.

    Args:
        folder: of the run, which held no earlier one.
        problem: what was to be searched.
        was_there: whether the folder was there before; else it goes, too, when it is empty.
    """
    exports = problem.spec.export.kwargs.root_path if problem.spec.export is not None else None
    for place in (folder, exports):
        for path in sorted(place.iterdir()) if place is not None and place.is_dir() else ():
            if path.name.startswith(OWN_STEMS):  # none was there when the run began
                _remove(path)
    from ..optimizers.journal import LOCK

    _remove_run(folder)
    (folder / LOCK).unlink(missing_ok=True)
    if not was_there and not any(folder.iterdir()):
        folder.rmdir()


def _golden(spec: ModelSpec) -> tuple[Path | None, ...]:
    return () if spec.test is None else (spec.test.inputs, spec.test.expected)


def _is_own(name: str) -> bool:
    return name in OWN or name.startswith(OWN_STEMS)


def _remove_run(folder: Path) -> None:
    """Remove what an earlier search wrote, by its journal; nothing else."""
    from ..optimizers.journal import read_journal

    try:
        records = read_journal(folder)
    except ModelError:
        records = []
    names = {Path(item["path"]) for record in records for item in record.get("files", ())}
    names |= {folder / f"{stem}{suffix}" for stem in OWN_STEMS for suffix in OWN_SUFFIXES}
    names |= {folder / name for name in OWN}
    names |= {folder / shipped_results(str(record.get("result"))) for record in records}
    for path in sorted(names):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
