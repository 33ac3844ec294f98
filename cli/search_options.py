"""Options that every search has, as decorators; in the order in which ``--help`` shows them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .durations import Duration

if TYPE_CHECKING:
    from ..commands.search_run import Progress, Watch
    from ..optimizers.verdict import Verdict
    from .options import Settings

Function = TypeVar("Function", bound=Callable[..., Any])


def goal_options(function: Function) -> Function:
    """Add what is wanted: the target, delta, the metric and its split."""
    return _added(
        function,
        click.option(
            "--target",
            type=click.Choice(["size", "latency"]),
            help="What is minimised: bytes of the file, or its measured time."
            "  [default: the spec's]",
        ),
        click.option(
            "--delta", type=float, metavar="X", help="Permitted drop, in the metric's range."
        ),
        click.option("--eval-key", metavar="K", help="The metric that counts."),
        click.option("--eval-split", metavar="S", help="The split that it is measured on."),
    )


def place_options(function: Function) -> Function:
    """Add where to compute, and how a call is timed."""
    return _added(
        function,
        click.option(
            "--device",
            type=click.Choice(["CPU", "GPU"], case_sensitive=False),
            help="Where to search; a GPU where there is one by default.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Samples of one timed call.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Threads of one timed call.",
        ),
    )


def cap_options(evaluations: str) -> Callable[[Function], Function]:
    """Add what a search may take at most.

    Args:
        evaluations: the default of ``--max-evaluations``, in words.
    """

    def decorate(function: Function) -> Function:
        return _added(
            function,
            click.option(
                "--max-evaluations",
                type=click.IntRange(min=1),
                help=f"Evaluations at most.  [default: {evaluations}]",
            ),
            click.option(
                "--max-time",
                "max_seconds",
                type=Duration(),
                help="When the search ends, as 90, 15m, 2h.  [default: three times the forecast]",
            ),
        )

    return decorate


def run_options(function: Function) -> Function:
    """Add the run's folder, resuming, the seed, and what is written for others."""
    return _added(
        function,
        click.option("--resume", is_flag=True, help="Go on with the search in RUNDIR."),
        click.option("--fresh", is_flag=True, help="Remove the search in RUNDIR, and start over."),
        click.option("--dry-run", is_flag=True, help="Walk through every phase on two batches."),
        click.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            help="Seed of everything that is random.",
        ),
        click.option(
            "-o",
            "--output",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="RUNDIR",
            help="Folder of the run.  [default: one in INGOT_HOME]",
        ),
        click.option(
            "--depfile",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write what the result depends on, for Make.",
        ),
        click.option("--strict", is_flag=True, help="Refuse --device GPU where there is none."),
    )


def _added(function: Function, *options: Callable[[Function], Function]) -> Function:
    return reduce(lambda decorated, option: option(decorated), reversed(options), function)


@contextmanager
def searching(settings: Settings) -> Iterator[tuple[Progress, Watch | None]]:
    """Show how far a search is; what the user's code prints is no part of the one document."""
    from .console_search import search_progress

    quiet = redirect_stdout(sys.stderr) if settings.json else nullcontext()
    with search_progress(settings) as shown, quiet:
        yield shown


def deliver(
    settings: Settings,
    verdict: Verdict,
    model: Path,
    depfile: Path | None,
    overrides: Any,
    reads: Sequence[Path] = (),
) -> int:
    """Print a verdict, write what others read, and return the exit code."""
    from ..commands.search_outputs import write_depfile, write_step_summary
    from .console_search import print_verdict

    document = verdict.to_dict()
    if settings.json:
        settings.print_json(document)
    else:
        print_verdict(document)
    write_step_summary(document)
    if depfile is not None:
        write_depfile(depfile, verdict, model, overrides, reads)
    return verdict.exit_code
