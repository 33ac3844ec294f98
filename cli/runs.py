"""``ingot runs``: a group of its own, of three small commands."""

from __future__ import annotations

import click

from .options import Settings, common_options


@click.group(
    "runs",
    no_args_is_help=False,
    epilog="Example: ingot runs list; ingot runs show compress-digits --follow",
)
def command() -> None:
    """List, show and remove the runs of searches and of training.

    Runs that are given no folder lie in INGOT_HOME/runs, ~/.ingot/runs when that is not set.
    """


@command.command("list", epilog="Example: ingot runs list --json | jq '.runs[].name'")
@common_options
def list_command(settings: Settings) -> None:
    """List the runs in INGOT_HOME/runs, the newest first."""
    from ..commands.runs import list_runs, runs_folder
    from .console_runs import print_runs

    runs = list_runs()
    if settings.json:
        document = {"folder": str(runs_folder().absolute()), "runs": [it.to_dict() for it in runs]}
        settings.print_json(document)
    else:
        print_runs(runs, runs_folder())


@command.command("show", epilog="Example: ingot runs show compress-digits_cnn --follow")
@click.argument("run")
@click.option("--follow", is_flag=True, help="Print trials as they come, until the search ends.")
@click.option("--markdown", is_flag=True, help="Print the verdict in Markdown, and nothing else.")
@common_options
def show_command(settings: Settings, run: str, follow: bool, markdown: bool) -> None:
    """Show RUN: its settings, its trials and its verdict.

    RUN is a folder, or the name of a run in INGOT_HOME/runs or a beginning of it. With --follow and
    --json the trials go to stderr, and the document comes at the end.
    """
    from ..commands.runs import follow_run, show_run
    from .console_runs import print_details, print_markdown, print_verdict, trial_printer

    if markdown and (follow or settings.json):
        raise click.UsageError("--markdown goes with neither --follow nor --json")
    details = follow_run(run, trial_printer(settings)) if follow else show_run(run)
    if settings.json:
        settings.print_json(details.to_dict())
    elif markdown:
        print_markdown(details)
    elif follow:
        print_verdict(details)
    else:
        print_details(details)


@command.command("clean", epilog="Example: ingot runs clean --dry-run")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--all", "every", is_flag=True, help="Also runs that could be resumed.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option(
    "-y",
    "--yes",
    "--force",
    "force",
    is_flag=True,
    help="Do not ask; with RUN: also a folder outside of INGOT_HOME/runs.",
)
@common_options
def clean_command(
    settings: Settings, runs: tuple[str, ...], every: bool, dry_run: bool, force: bool
) -> None:
    """Remove each RUN, or all runs in INGOT_HOME/runs that have finished.

    A run is removed with all that its folder holds, its models included. One that is running stays,
    and so does a folder that is none of a run. Without RUN it asks first, on a terminal; elsewhere
    it needs --yes.
    """
    from ..commands.runs_clean import clean_runs
    from .console_runs import may_clean, print_cleaned

    if not (runs or dry_run or force):
        planned = clean_runs(every=every, dry_run=True)
        if planned.removed and not may_clean(planned):
            raise click.UsageError("nobody can be asked here; expected --yes, --dry-run or RUN")
    result = clean_runs(runs, every=every, dry_run=dry_run, force=force)
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_cleaned(result)
