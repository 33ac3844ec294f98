"""``ingot optimize``."""

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
    "optimize",
    epilog="Example: ingot optimize digits.yaml --delta 1.0 -o run",
)
@click.argument("spec", type=click.Path(path_type=Path))
@goal_options
@click.option(
    "--bits",
    type=click.Choice(["8", "4", "2", "mixed"]),
    help="Of the weights that are left.  [default: 8]",
)
@click.option(
    "--level",
    type=click.IntRange(1, 3),
    help="2 takes about twice the time and prunes more; 3 means 2.",
)
@click.option("--deepsearch/--no-deepsearch", default=None, help="End closer to delta.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Layers that are not pruned, as 'head.*'. May repeat.",
)
@click.option(
    "--calibration",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples to calibrate activations on.  [default: 256]",
)
@click.option("--reduce-range", is_flag=True, help="Weights of 7 bits, for x86 without VNNI.")
@place_options
@cap_options("those of compress and quantize, for each search")
@click.option(
    "--finetune-epochs",
    type=click.IntRange(min=0),
    help="Training after each step.  [default: fine_tuner of the spec, else 2]",
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
    """Prune the network of SPEC and quantize what is left, within one --delta for both.

    How much of delta goes to pruning is searched: several pruned networks are quantized, and each
    is compared with the network that was given. One file, and one verdict, come out.

    Exits with 0 when the drop is within delta, with 3 when it is not (the best that was found is
    saved), and with 130 when it was interrupted.
    """
    from ..commands.optimize import OptimizeOptions, optimize
    from ..commands.search_outputs import check_depfile

    if depfile is not None:
        check_depfile(depfile)
    wanted = OptimizeOptions(**options)
    with searching(settings) as (progress, watch):
        verdict = optimize(spec, wanted, overrides=overrides, progress=progress, watch=watch)
    return deliver(settings, verdict, spec, depfile, overrides)
