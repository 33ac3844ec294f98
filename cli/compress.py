"""``ingot compress``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import Settings, common_options, set_option
from .search_options import (
    cap_options,
    deliver,
    goal_options,
    place_options,
    run_options,
    searching,
)


@click.command(
    "compress",
    epilog="Example: ingot compress digits.yaml --delta 1.0 --format onnx -o run",
)
@click.argument("spec", type=click.Path(path_type=Path))
@goal_options
@click.option(
    "--level",
    type=click.IntRange(1, 3),
    help="2 takes about twice the time and compresses more; 3 means 2.",
)
@click.option("--deepsearch/--no-deepsearch", default=None, help="End closer to delta.")
@place_options
@cap_options("18, at level 2 32; 8 more with --deepsearch")
@click.option(
    "--finetune-epochs",
    type=click.IntRange(min=0),
    help="Training after each step.  [default: fine_tuner of the spec, else 2]",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Layers that stay as they are, as 'head.*'. May repeat.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="FORMAT",
    help="Export the result to it; the first is measured. May repeat."
    "  [default: export.format of the spec, else onnx]",
)
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that train together on this machine (DDP).",
)
@run_options
@set_option
@common_options
def command(
    settings: Settings,
    spec: Path,
    depfile: Path | None,
    overrides: tuple[str, ...],
    **options: Any,
) -> int:
    """Make the network of SPEC as small, or as fast, as --delta allows.

    The metric that counts is measured on the file that ships. The run's folder gets the result
    (opt_model*), the reference (ref_model*), verdict.json, report.html and a journal: a search that
    was killed goes on with --resume, and does nothing twice.

    Exits with 0 when the drop is within delta, with 3 when it is not (the best that was found is
    saved), and with 130 when it was interrupted.
    """
    from ..commands.compress import compress
    from ..commands.compress_setup import CompressOptions
    from ..commands.search_outputs import check_depfile

    if depfile is not None:
        check_depfile(depfile)
    wanted = CompressOptions(**options)
    with searching(settings) as (progress, watch):
        verdict = compress(spec, wanted, overrides=overrides, progress=progress, watch=watch)
    return deliver(settings, verdict, spec, depfile, overrides)
