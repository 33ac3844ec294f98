"""What ``runs`` tells of a search of hyper-parameters."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ModelError
from ..optimizers.study import TRIALS
from .runs import Run, RunDetails, State, measure
from .tune_folder import read_study
from .tune_result import RESULT


def study_details(folder: Path) -> RunDetails:
    """Return all that is known of a study, without its database.

    Raises:
        ModelError: its description, or its result, is damaged.
    """
    from ..optimizers.journal import holder_of

    study = read_study(folder)
    document = {}
    path = folder / RESULT
    if path.is_file():
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path}: found no JSON; the file is damaged") from error
    trials = sorted((folder / TRIALS).iterdir()) if (folder / TRIALS).is_dir() else []
    holders = [holder for trial in trials if (holder := holder_of(trial)) is not None]
    finished, wanted = document.get("finished", 0), document.get("wanted")
    is_done = finished and (finished >= wanted or document.get("stopped_by") == "exhausted")
    state: State = "running" if holders else "tuned" if is_done else "unfinished"
    size, changed = measure(folder)
    run = Run(
        folder.name,
        folder,
        "tune",
        str(study.get("name") or ""),
        state,
        "",
        None,
        None,
        finished,
        size,
        float(study.get("started") or changed),
        changed,
        holders[0] if holders else None,
    )
    return RunDetails(run, tuning=document)
