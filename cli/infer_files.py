"""``ingot infer --files``: its options, and how predictions are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Function, Settings, printable, set_option

if TYPE_CHECKING:
    from ..commands.infer_files import FilesResult

_STANDARD_STREAM = "-"


def files_options(function: Function) -> Function:
    """Add the options of samples; the function gets them as ``samples``, a mapping."""

    @click.argument("more_files", nargs=-1, metavar="")
    @click.option(
        "--files",
        multiple=True,
        metavar="FILE...",
        help="Run files through the spec's preprocessing: images, folders, CSVs, texts.",
    )
    @click.option(
        "--spec",
        type=click.Path(),
        metavar="SPEC",
        help="With --files: the spec that a package or model file was trained with.",
    )
    @click.option(
        "--display",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="With --files: show each prediction in a file of this folder.",
    )
    @set_option
    @wraps(function)
    def wrapper(
        *args: Any,
        more_files: tuple[str, ...],
        files: tuple[str, ...],
        spec: str | None,
        display: Path | None,
        overrides: tuple[str, ...],
        **kwargs: Any,
    ) -> Any:
        if more_files and not files:
            raise click.UsageError(f"found {more_files[0]!r} after MODEL; expected --files first")
        samples = {
            "files": (*files, *more_files),
            "spec": spec,
            "display": display,
            "overrides": overrides,
        }
        return function(*args, samples=samples, **kwargs)

    return wrapper  # type: ignore[return-value]


def is_about_samples(model: str, samples: Mapping[str, Any], of_arrays: Mapping[str, Any]) -> bool:
    """Whether a call runs files, or the ``test_samples`` of a spec, and no arrays.

    Args:
        model: what is run.
        samples: the values of :func:`files_options`.
        of_arrays: by name what only a call with arrays may give; empty or None where it is not.

    Raises:
        UsageError: options of both kinds are given.
    """
    given = [name for name, value in of_arrays.items() if value]
    if samples["files"]:
        if given:
            raise click.UsageError(f"--files cannot be combined with {given[0]}")
        return True
    if not {"-i", "--inputs"} & set(given) and _has_test_samples(model, samples):
        if given:
            raise click.UsageError(f"{given[0]} needs -i or --inputs")
        return True
    for name, value in (
        ("--display", samples["display"]),
        ("--spec", samples["spec"]),
        ("--set", samples["overrides"]),
    ):
        if value:
            raise click.UsageError(f"{name} needs --files, or training.test_samples in the spec")
    return False


def _has_test_samples(model: str, samples: Mapping[str, Any]) -> bool:
    from ..runtime.detect import expand, is_spec

    path = expand(model)
    if not is_spec(path) or not path.is_file():
        return False
    from ..specs import load_spec

    training = load_spec(path, samples["overrides"], check_files=False).training
    return training is not None and bool(training.test_samples)


def run_samples(
    settings: Settings,
    model: str,
    samples: Mapping[str, Any],
    result_file: str | None,
    **options: Any,
) -> None:
    """Predict, and print or write what was predicted.

    Args:
        settings: how the command talks.
        model: what is run.
        samples: the values of :func:`files_options`.
        result_file: ``-o``.
        options: those of ``infer`` that mean the same here.
    """
    from ..commands.infer_files import infer_files

    to_stream = result_file == _STANDARD_STREAM
    result = infer_files(model, output=None if to_stream else result_file, **samples, **options)
    if settings.json:
        settings.print_json(result.to_dict(), has_arrays=True)
    elif to_stream:
        click.echo(json.dumps(result.to_dict()["predictions"]))
    else:
        print_predictions(result)
    for paths in result.pictures:
        for path in paths:
            settings.progress(f"wrote {path}")


def print_predictions(result: FilesResult) -> None:
    """Print each prediction, or where they are written."""
    if result.path is None:
        for prediction in result.predictions:
            for line in prediction.line().splitlines():
                click.echo(printable(line))
    else:
        click.echo(printable(str(result.path)))
