"""``ingot compress``."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click

from .durations import Duration
from .options import Settings, common_options, set_option


@click.command(
    "compress",
    epilog="Example: ingot compress digits.yaml --delta 1.0 --format onnx -o run",
)
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--target",
    type=click.Choice(["size", "latency"]),
    help="What is minimised: bytes of the file, or its measured time.  [default: the spec's]",
)
@click.option("--delta", type=float, metavar="X", help="Permitted drop, in the metric's range.")
@click.option("--eval-key", metavar="K", help="The metric that counts.")
@click.option("--eval-split", metavar="S", help="The split that it is measured on.")
@click.option(
    "--level",
    type=click.IntRange(1, 3),
    help="2 takes about twice the time and compresses more; 3 means 2.",
)
@click.option("--deepsearch/--no-deepsearch", default=None, help="End closer to delta.")
@click.option(
    "--device",
    type=click.Choice(["CPU", "GPU"], case_sensitive=False),
    help="Where to search; a GPU where there is one by default.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Samples of one timed call.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of one timed call.",
)
@click.option(
    "--max-evaluations",
    type=click.IntRange(min=1),
    help="Evaluations at most.  [default: 18, at level 2 32; 8 more with --deepsearch]",
)
@click.option(
    "--max-time",
    type=Duration(),
    help="When the search ends, as 90, 15m, 2h.  [default: three times the forecast]",
)
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
@click.option("--resume", is_flag=True, help="Go on with the search in RUNDIR.")
@click.option("--fresh", is_flag=True, help="Remove the search in RUNDIR, and start over.")
@click.option("--dry-run", is_flag=True, help="Walk through every phase on two batches.")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that train together on this machine (DDP).",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of everything that is random."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="RUNDIR",
    help="Folder of the run.  [default: one in INGOT_HOME]",
)
@click.option(
    "--depfile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write what the result depends on, for Make.",
)
@click.option("--strict", is_flag=True, help="Refuse --device GPU where there is none.")
@set_option
@common_options
def command(
    settings: Settings,
    spec: Path,
    depfile: Path | None,
    max_time: float | None,
    exclude: tuple[str, ...],
    formats: tuple[str, ...],
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
    from ..commands.search_outputs import check_depfile, write_depfile, write_step_summary
    from .console_compress import print_verdict, search_progress

    if depfile is not None:
        check_depfile(depfile)
    wanted = CompressOptions(max_seconds=max_time, exclude=exclude, formats=formats, **options)
    # What the user's code prints is no part of the one document.
    quiet = redirect_stdout(sys.stderr) if settings.json else nullcontext()
    with search_progress(settings) as (progress, watch), quiet:
        verdict = compress(spec, wanted, overrides=overrides, progress=progress, watch=watch)
    document = verdict.to_dict()
    if depfile is not None:
        write_depfile(depfile, verdict, spec, overrides)
    if settings.json:
        settings.print_json(document)
    else:
        print_verdict(document)
    write_step_summary(document)
    return verdict.exit_code
