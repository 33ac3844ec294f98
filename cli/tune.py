"""``ingot tune``."""

from __future__ import annotations

from pathlib import Path

import click

from .durations import Duration
from .options import Settings, common_options, set_option


@click.command("tune", epilog="Example: ingot tune digits.yaml -o study --trials 30")
@click.argument("spec", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the study.  [default: one in INGOT_HOME]",
)
@click.option(
    "--trials", type=click.IntRange(min=1), help="Trials of the study.  [default: tune.trials]"
)
@click.option(
    "--space",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What is searched, in place of the section tune of the spec.",
)
@click.option(
    "--max-time",
    "max_seconds",
    type=Duration(),
    help="When this process ends, as 90, 15m, 2h; its trial can be gone on with.",
)
@click.option("--timeout", type=Duration(), help="Longest time of a trial, as 90, 15m, 2h.")
@click.option("--fresh", is_flag=True, help="Remove the study in the folder, and start over.")
@click.option("--keep-weights", is_flag=True, help="Keep the weights of all trials.")
@click.option(
    "--device",
    type=click.Choice(["CPU", "GPU"], case_sensitive=False),
    help="Where to train; a GPU where there is one by default.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the search, and of each training run.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator.")
@click.option("--strict", is_flag=True, help="Refuse --device GPU where there is none.")
@set_option
@common_options
def command(
    settings: Settings,
    spec: str,
    output: Path | None,
    trials: int | None,
    space: Path | None,
    max_seconds: float | None,
    timeout: float | None,
    fresh: bool,
    keep_weights: bool,
    device: str | None,
    seed: int,
    threads: int | None,
    strict: bool,
    overrides: tuple[str, ...],
) -> int:
    """Search hyper-parameters of SPEC: train trials of it, and keep the best.

    The section tune of the spec says which keys are drawn, and from what. The folder gets the spec
    of the best trial (best.yaml), a report (report.html) and the result (tune.json).

    The same command again goes on with the study, and started twice at the same time, both work on
    it; trials that have ended are not repeated. A trial that diverges is recorded as failed.
    """
    from ..commands.tune import tune
    from .console_tune import print_tune, tune_progress

    with tune_progress(settings) as report:
        result = tune(
            spec,
            output,
            trials=trials,
            space=space,
            max_seconds=max_seconds,
            timeout=timeout,
            fresh=fresh,
            keep_weights=keep_weights,
            device=device,
            seed=seed,
            threads=threads,
            overrides=overrides,
            strict=strict,
            report=report,
        )
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_tune(result)
    return 0
