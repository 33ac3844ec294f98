"""The folder of a study: where it is, which study it is of, and how it is removed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError, OutputExistsError, UsageError
from ..optimizers.journal import LOCK, holder_of
from ..optimizers.study import DATABASE, TRIALS
from ..runtime.atomic import replacing
from ..specs import ModelSpec, TuneSection
from ..specs.declare import plain_values
from .search_folder import run_folder
from .tune_result import BEST_SPEC, REPORT, RESULT

STUDY = "study.json"
_OWN = (STUDY, DATABASE, f"{DATABASE}-journal", TRIALS, BEST_SPEC, REPORT, RESULT)
_ABSENT = "nothing"


def identity_of(spec: ModelSpec, section: TuneSection, seed: int) -> dict[str, Any]:
    """Return what has to be the same in every process that works on a study, in JSON values.

    Args:
        spec: with what is fixed, and without the section ``tune``.
        section: what is searched.
        seed: of the search.
    """
    found: dict[str, Any] = {
        "parameters": plain_values(section.parameters),
        "sampler": section.sampler,
        "pruner": section.pruner,
        "seed": seed,
        "spec": spec.to_dict(),
        "root": str(spec.root.absolute()),
    }
    whole: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return whole


def study_folder(spec: ModelSpec, output: Path | None, seed: int) -> Path:
    """Return the folder of a study: the one that is given, or one in ``INGOT_HOME``.

    That is named by the spec and the seed, and not by what is searched: the same command finds its
    study again, and another search of the same name is refused.
    """
    from ..optimizers.run_key import hash_of

    key = hash_of([spec.to_dict(), str(spec.root.absolute()), seed])
    return run_folder("tune", spec.name, output, key)


def prepare_study(folder: Path, identity: Mapping[str, Any], *, fresh: bool, name: str) -> bool:
    """Make the folder of a study, or check that it holds the same one; return whether it is new.

    Args:
        folder: of the study.
        identity: see :func:`identity_of`.
        fresh: remove an earlier study.
        name: of the model.

    Raises:
        UsageError: it holds another study, or one that a process works on is to be removed.
        OutputExistsError: files lie there that no study wrote.
        ModelError: its description is damaged.
    """
    import fcntl

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: found a file; expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made: {error.strerror}") from error
    with (folder / LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two that begin at once, one makes it
        if (folder / STUDY).is_file():
            if not fresh:
                _require_same(folder, identity)
                return False
            remove_study(folder)
        else:
            for path in sorted(folder.iterdir()):
                if path.name in _OWN:
                    raise OutputExistsError(
                        f"{path}: is there already, and no study in {folder} wrote it",
                        hint="remove it, or give another folder with -o",
                    )
        document = {
            "schema_version": 1,
            "name": name,
            "started": time.time(),
            "versions": _versions(),
            **identity,
        }
        with replacing(folder / STUDY) as part:
            part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return True


def remove_study(folder: Path) -> None:
    """Remove a study, and nothing else that lies in its folder.

    Raises:
        UsageError: a process works on it.
    """
    trials = folder / TRIALS
    folders = sorted(trials.iterdir()) if trials.is_dir() else []
    held = [path for path in folders if holder_of(path) is not None]
    if held:
        raise UsageError(
            f"{folder}: another process works on trial {int(held[0].name)}; the study cannot be"
            " removed"
        )
    for name in _OWN:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_study(folder: Path) -> dict[str, Any]:
    """Return the description of a study.

    Raises:
        ModelError: it is damaged.
    """
    path = folder / STUDY
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found.get("parameters"), dict) and isinstance(found.get("spec"), dict):
            document: dict[str, Any] = found
            return document
    except (ValueError, AttributeError):
        pass
    raise ModelError(
        f"{path}: found no description of a study; the file was changed or is damaged",
        hint="--fresh removes the study and starts over",
    )


def _require_same(folder: Path, identity: Mapping[str, Any]) -> None:
    from ..training.resume import differences

    before = read_study(folder)
    hint = "give another folder with -o, or --fresh removes the study and starts over"
    old, new = before["parameters"], identity["parameters"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise UsageError(
                f"{folder}: holds a study of another search space: {name}: found"
                f" {_said(new.get(name))}; the study has {_said(old.get(name))}",
                hint=hint,
            )
    for name in ("sampler", "pruner", "seed", "root"):
        if before.get(name) != identity[name]:
            raise UsageError(
                f"{folder}: holds another study: {name}: found {identity[name]}; the study has"
                f" {before.get(name)}",
                hint=hint,
            )
    changed = differences(before["spec"], identity["spec"])
    for name, (then, now) in changed.items():
        raise UsageError(
            f"{folder}: holds a study of another spec: {name}: found {_said(now)}; the study has"
            f" {_said(then)}",
            hint=hint,
        )


def _said(value: Any) -> str:
    if value is None or value == _ABSENT:
        return _ABSENT
    if isinstance(value, Mapping) and len(value) == 1:
        return " ".join(f"{name} {json.dumps(item)}" for name, item in value.items())
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _versions() -> dict[str, str]:
    from importlib import metadata

    from ..optimizers.run_key import tool_versions

    return {**tool_versions(), "optuna": metadata.version("optuna")}
