"""What a search writes for those around it: Make, and a workflow's summary."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..runtime.atomic import replacing

if TYPE_CHECKING:
    from ..optimizers.verdict import Verdict

SUMMARY = "GITHUB_STEP_SUMMARY"
"""Environment variable: the file that a workflow's step appends its summary to."""


def check_depfile(path: Path) -> None:
    """Refuse a place that cannot be written to, before the search.

    Raises:
        UsageError: it is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise UsageError(f"--depfile: {path}: found a folder; expected a file")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--depfile: {path}: its folder does not exist, or cannot be written to")


def write_depfile(
    path: Path,
    verdict: Verdict,
    model: Path,
    overrides: Sequence[str],
    reads: Sequence[Path] = (),
) -> None:
    """Write a rule for Make: the verdict depends on the model, its code, weights and data.

    Args:
        path: the file.
        verdict: what depends.
        model: a spec, a package or a model file.
        overrides: ``key.path=value`` changes of the spec.
        reads: further files that were read.

    Raises:
        UsageError: it cannot be written, or Make cannot say a name.
    """
    from ..optimizers.run_key import code_files
    from ..reports.depfile import depfile
    from ..runtime.detect import detect
    from ..runtime.sources import source_from_spec
    from ..specs import load_spec
    from .search_folder import VERDICT

    files = [model]
    if detect(model) == "spec":
        loaded = load_spec(model, overrides)
        source = source_from_spec(loaded)
        files += code_files(source.code_root)
        found = (source.path, source.weights, loaded.problem)
        files += [file for file in found if file is not None]
    elif model.is_dir():
        files = sorted(file for file in model.rglob("*") if file.is_file())
    files += reads
    here = Path.cwd()
    named = [file.relative_to(here) if file.is_relative_to(here) else file for file in files]
    target = verdict.run_dir / VERDICT
    try:
        with replacing(path) as part:
            part.write_text(depfile([target], named))
    except OSError as error:
        raise UsageError(f"--depfile: {path}: cannot be written: {error.strerror}") from error


def write_step_summary(verdict: Mapping[str, Any]) -> None:
    """Append the comparison to a workflow's summary, where there is one."""
    from ..reports.markdown import comparison_markdown

    path = os.environ.get(SUMMARY)
    if not path:
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(comparison_markdown(verdict) + "\n")
    except OSError as error:
        logging.getLogger("ingot").warning(
            "%s: %s: cannot be written: %s", SUMMARY, path, error.strerror
        )
