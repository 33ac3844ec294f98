"""Where exported files go: the folder that they are drafted in, and their delivery."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputExistsError, UsageError
from .export_result import Artifact
from .models import NamedModel, tree_sha256, tree_size

if TYPE_CHECKING:
    from ..exporters import Draft, Format, Variant
    from ..exporters.parity import Parity
    from ..exporters.variants import Mode

_FOLDERS = ("savedmodel",)
"""Formats whose files are folders."""

_MAYBE = {"onnx": ".data"}
"""Ends of the files that some files of a format have beside them, after their whole name."""

_ASIDE = ".replaced"
"""Where in the workspace the files lie that new ones take the place of."""


@dataclass(frozen=True)
class ExportOptions:
    """The options of one export, the spec's where the caller gave none."""

    formats: tuple[str, ...]
    output: Path
    precision: str
    resolutions: tuple[tuple[int, int], ...]
    mode: Mode
    bn_fusion: bool
    tolerance: float
    stem: str
    force: bool


def refuse_existing(
    plans: Mapping[str, Sequence[Variant]],
    entries: Mapping[str, Format],
    options: ExportOptions,
    found: NamedModel,
) -> None:
    """Refuse files that are there already, before any work.

    Raises:
        OutputExistsError: one is there, and ``force`` was not given; or something of another kind
            is, or a file of the source.
        UsageError: a SavedModel would be copied into itself.
    """
    source, output = found.source.path, Path(os.path.realpath(options.output))
    copied = source is not None and source.is_dir() and any(key in plans for key in _FOLDERS)
    if source is not None and copied and output.is_relative_to(os.path.realpath(source)):
        raise UsageError(
            f"-o {options.output}: lies inside of the model's own folder, {source}",
            hint="give another folder with -o",
        )
    places = {}
    for key, variants in plans.items():
        for variant in variants:
            for name in entries[key].file_names(options.stem, options.precision, variant):
                for place in _with_companion(options.output / name, key):
                    if os.path.lexists(place):
                        places[place] = key
    own = _own_files(found) if places else []
    for place, key in places.items():
        if any(_is_part(file, place) for file in own):
            raise OutputExistsError(
                f"{place}: the export would replace its own source",
                hint="give another --name, or another folder with -o",
            )
        _refuse(place, key, options.force)


def _with_companion(path: Path, key: str) -> tuple[Path, ...]:
    """Return a file, and that which may belong to it: an old one would be taken for its own."""
    return (path, path.with_name(path.name + _MAYBE[key])) if key in _MAYBE else (path,)


def _own_files(found: NamedModel) -> list[Path]:
    """Return what is there of the files that a model consists of."""
    source = found.source
    spec = found.spec.path if found.spec is not None else None
    files = [source.path, source.weights, spec, *source.data_files.values(), *source.custom_ops]
    own = [file for file in files if file is not None and file.exists()]
    if source.framework == "onnx" and source.path is not None:
        from ..frameworks.onnx import external_data_files

        own += [source.path.parent / name for name in external_data_files(source.path)]
    return own


def _is_part(file: Path, place: Path) -> bool:
    """Whether a file is what lies at a place, or lies in the folder there."""
    if not place.exists() or not file.exists():
        return False
    if place.is_dir() and not place.is_symlink():
        return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(place))
    return place.samefile(file)


def _refuse(place: Path, key: str, force: bool) -> None:
    """Refuse to replace what lies at a place, unless the user said so and it is of the same kind.

    A link is replaced itself, whatever it leads to.

    Raises:
        OutputExistsError: it may not be replaced.
    """
    if not os.path.lexists(place):
        return
    problem = None
    if place.is_dir() and not place.is_symlink():
        if key not in _FOLDERS:
            problem = "is a folder; expected a file"
        elif not any((place / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            problem = "is no SavedModel (it has no saved_model.pb)"
    elif key in _FOLDERS and not place.is_symlink():
        problem = "is a file; expected a folder"
    elif not place.is_file() and not place.is_symlink():
        problem = "is neither a file nor a folder"
    if problem is not None:
        raise OutputExistsError(
            f"{place}: exists already, and {problem}",
            hint="--force does not replace it: move it away, or give another --name",
        )
    if not force:
        raise OutputExistsError(f"{place}: exists already", hint="pass --force")


@contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """Make a folder for drafts inside of the output folder, and leave nothing of it behind.

    Raises:
        UsageError: it cannot be written to.
    """
    made = [folder for folder in (output, *output.absolute().parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".ingot-export-", dir=output))
    except OSError as error:
        raise UsageError(
            f"-o {output}: cannot be written to: {error.strerror}",
            hint="give a folder that you may write to",
        ) from error
    try:
        yield folder
    finally:
        aside = folder / _ASIDE
        if not aside.is_dir() or not any(aside.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        for empty in made:
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()


def deliver(
    made: Sequence[tuple[str, Draft, Parity]],
    metrics: Mapping[Any, dict[str, float]],
    folder: Path,
    options: ExportOptions,
) -> list[Artifact]:
    """Move every file to its place, or none, and describe it.

    Raises:
        OutputExistsError: something has come to lie there that may not be replaced.
        UsageError: a file cannot be moved.
    """
    artifacts = []
    moves: dict[Path, Path | None] = {}
    pattern = folder / ".mode"
    pattern.touch()  # gets the permissions that the user's umask allows
    mode = pattern.stat().st_mode
    for key, draft, parity in made:
        files = (draft.path, *draft.companions)
        places = [options.output / file.relative_to(folder) for file in files]
        for file, place in zip(files, places, strict=True):
            if file.is_file():
                file.chmod(mode)
            moves[place] = file
        for place in {place for path in places for place in _with_companion(path, key)}:
            _refuse(place, key, options.force)
            moves.setdefault(place, None)
        artifacts.append(
            Artifact(
                places[0],
                key,
                draft.variant.name,
                options.precision,
                sum(tree_size(file) for file in files),
                tree_sha256(draft.path),
                tuple(places[1:]),
                parity,
                metrics.get(draft.path),
                draft.notes,
            )
        )
    try:
        _move(moves, folder / _ASIDE)
    except OSError as error:
        raise UsageError(
            f"-o {options.output}: cannot be written to: {error.strerror}",
            hint="give a folder that you may write to",
        ) from error
    for artifact in artifacts:
        for note in artifact.notes:
            logging.getLogger("ingot").info("%s: %s", artifact.path.name, note)
    return artifacts


def _move(moves: Mapping[Path, Path | None], aside: Path) -> None:
    """Move files to their places, by place, and remove what was there; None only removes.

    When a step fails, all that went before it is undone. What cannot be put back is left in
    ``aside``, and a warning says so.
    """
    aside.mkdir()
    steps = [
        (place, aside / str(index)) for index, place in enumerate(moves) if os.path.lexists(place)
    ]
    steps += [(file, place) for place, file in moves.items() if file is not None]
    done = []
    try:
        for before, after in steps:
            done.append((before, after))
            os.rename(before, after)
    except BaseException:
        for before, after in reversed(done):
            if not os.path.lexists(after) or (os.path.lexists(before) and after.parent != aside):
                continue  # the step that failed
            try:
                if os.path.lexists(before):
                    raise FileExistsError
                os.rename(after, before)
            except OSError:
                logging.getLogger("ingot").warning("%s: what was there is now %s", before, after)
        raise
    shutil.rmtree(aside, ignore_errors=True)
