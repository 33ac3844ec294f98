"""Renders runs: the list, one with its trials, and what was removed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..reports.comparison import HEADINGS, comparison_rows, drop_text, facts, headline
from ..reports.markdown import comparison_markdown
from ..reports.numbers import duration, finite, plain, times
from ..reports.search import size_measure
from .console import StyledTable, _fields, echo, human_size, print_table

if TYPE_CHECKING:
    from ..commands.runs import Run, RunDetails
    from ..commands.runs_clean import CleanResult
    from .options import Settings

_STYLES = {
    "running": "cyan",
    "met": "green",
    "trained": "green",
    "tuned": "green",
    "missed": "red",
    "damaged": "bold red",
    "accepted": "green",
    "slower": "yellow",
    "failed": "bold red",
    "interrupted": "yellow",
    "unfinished": "yellow",
}
_DAY = 86400


def print_runs(runs: Sequence[Run], folder: Path) -> None:
    """Print one row a run."""
    if not runs:
        echo(f"no runs in {folder}")
        return
    table = StyledTable(box=None, padding=(0, 1, 0, 0))
    table.add_column("name", overflow="fold", style="cyan")
    table.add_column("command", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("ratio", "drop", "evals", "size", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            run.name,
            run.command or "-",
            run.model or "-",
            _state(run.state),
            _or_dash(run.ratio, times),
            _or_dash(run.drop, lambda value: f"{value:.2f}"),
            "-" if run.evaluations is None else str(run.evaluations),
            human_size(run.size_bytes),
            _age(run.started),
        )
    print_table(table)


def _state(word: str) -> Text:
    return Text(word, style=_STYLES.get(word, ""))


def _or_dash(value: Any, shown: Callable[[float], str]) -> str:
    number = finite(value)
    return "-" if number is None else shown(number)


def _age(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    if seconds >= 2 * _DAY:
        return f"{seconds / _DAY:.0f} days"
    return duration(seconds).split()[0]


def print_details(details: RunDetails) -> None:
    """Print all that is known of a run."""
    run, begun = details.run, details.record("run")
    table = _fields()
    table.add_row("run", str(run.path))
    table.add_row("state", _state(run.state) if run.process is None else _running(run.process))
    table.add_row("command", f"{run.command or '-'} {run.model}".strip())
    table.add_row("started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.started)))
    if run.target:
        permitted = plain(begun.get("delta", details.verdict.get("delta")))
        table.add_row("target", f"{run.target}, permitted drop {permitted}")
    forecast = details.record("forecast")
    if forecast:
        most = f"at most {forecast.get('max_evaluations')} evaluations"
        table.add_row("forecast", f"{most}, about {duration(forecast.get('seconds'))}")
    if begun.get("settings"):
        said = [f"{key}={_setting(value)}" for key, value in begun["settings"].items()]
        table.add_row("settings", ", ".join(said))
    if begun:
        table.add_row("seed", str(begun.get("seed", "-")))
    if begun.get("versions"):
        said = [f"{name} {version}" for name, version in begun["versions"].items()]
        table.add_row("versions", ", ".join(said))
    table.add_row("size", human_size(run.size_bytes))
    _add_training(table, details.training)
    _add_tuning(table, details.tuning)
    print_table(table)
    if details.trials:
        echo("")
        _print_trials(details)
    if details.verdict:
        echo("")
        print_verdict(details)
    elif run.target and run.process is None:
        echo("")
        echo(f"no verdict: it was ended before it was done; 'ingot {run.command}' with --resume")


def _running(process: int) -> Text:
    number = f", process {process}" if process else ""
    return Text(f"running{number}", style="cyan")


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(str, value)) + "]"
    return str(value)


def _add_training(table: StyledTable, result: Mapping[str, Any]) -> None:
    if not result:
        return
    table.add_row("epochs", f"{result.get('epochs')} ({duration(result.get('elapsed_seconds'))})")
    for name, value in (result.get("metrics") or {}).items():
        table.add_row(name, plain(value))
    table.add_row("weights", str(result.get("weights")))


def _add_tuning(table: StyledTable, result: Mapping[str, Any]) -> None:
    if not result:
        return
    table.add_row("trials", f"{result.get('finished')} of {result.get('wanted')} ended")
    best = result.get("best")
    if best:
        value = f"{result.get('eval_key')} {plain(best.get('value'))}"
        table.add_row("best", f"{value}, trial {best.get('trial')}")
        table.add_row("spec", str(result.get("best_spec")))
    table.add_row("report", str(result.get("report")))


def _print_trials(details: RunDetails) -> None:
    table = StyledTable(box=None, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True, style="cyan")
    table.add_column("status", no_wrap=True)
    size = _size_measure(details.records).replace("size_", "")
    for name in (size, "ratio", "metric", "drop", "epochs", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for trial in details.trials:
        cells = _trial_cells(trial, details.records)
        status = _state(str(trial.get("status") or "-"))
        table.add_row(str(trial["name"]), status, *cells, str(trial.get("reason") or ""))
    print_table(table)


def _trial_cells(
    trial: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> tuple[str, str, str, str, str, str]:
    """Return parameters (or bytes), ratio, metric, drop, epochs and time of a trial."""
    measure = _size_measure(records)
    reference = next((it for it in records if it["kind"] == "reference"), {})
    key = reference.get("eval_key")
    before = finite((reference.get("measured") or {}).get(measure))
    after = finite(trial.get(measure))
    value = (trial.get("metrics") or {}).get(key)
    return (
        _or_dash(after, lambda number: f"{number:,.0f}"),
        times(before / after) if before and after else "-",
        _or_dash(value, lambda number: f"{number:.6g}"),
        _or_dash(trial.get("drop"), lambda number: f"{number:.3g}"),
        _or_dash(trial.get("epochs"), plain),
        _or_dash(trial.get("seconds"), duration),
    )


def _size_measure(records: Sequence[Mapping[str, Any]]) -> str:
    return size_measure(next((it.get("command") for it in records if it["kind"] == "run"), None))


def trial_printer(
    settings: Settings,
) -> Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], None]:
    """Return what prints a line for each trial: with ``--json`` to stderr."""

    def report(records: Sequence[Mapping[str, Any]], trial: Mapping[str, Any]) -> None:
        parameters, ratio, value, drop, _, seconds = _trial_cells(trial, records)
        status = str(trial.get("status") or "-")
        line = (
            f"trial {trial['name']:>3}  {status:<14} {parameters:>11} {ratio:>7}"
            f"  {value:>8}  drop {drop:>7}  {seconds}"
        )
        if settings.json:
            settings.progress(line.rstrip())
        else:
            echo(line.rstrip())
            sys.stdout.flush()

    return report


def print_verdict(details: RunDetails) -> None:
    """Print how a search ended: the comparison, and what else is to be said."""
    verdict = details.verdict
    if not verdict:
        echo(f"{details.run.name}: {details.run.state}, no verdict")
        return
    table = StyledTable(box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in comparison_rows(verdict):
        table.add_row(*row.cells)
    print_table(table)
    echo("")
    echo(f"{verdict.get('verdict')}: {headline(verdict).partition(': ')[2]}")
    for label, text in facts(verdict):
        if label in ("stopped by", "evaluations", "time", "confirmed"):
            echo(f"{label}: {text}")
    for artifact in verdict.get("artifacts") or ():
        echo(f"{artifact.get('format')}: {artifact.get('path')}")


def print_markdown(details: RunDetails) -> None:
    """Print the verdict in Markdown; of a search without one, a line."""
    run = details.run
    if details.verdict:
        click.echo(comparison_markdown({"model": run.model, **details.verdict}), nl=False)
    else:
        drop = {"drop": run.drop, "delta": details.record("run").get("delta")}
        said = f"; so far {times(run.ratio)}, {drop_text(drop)}" if run.ratio else ""
        click.echo(f"### {run.name}: {run.state}{said}")


def may_clean(planned: CleanResult) -> bool:
    """Ask on a terminal whether runs may be removed; False where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    for run in planned.removed:
        echo(f"{run.state:<12} {human_size(run.size_bytes):>10}  {run.path}", err=True)
    click.confirm("remove these?", abort=True, err=True)
    return True


def print_cleaned(result: CleanResult) -> None:
    """Print what was removed, what was not, and how much was freed."""
    word = "would remove" if result.dry_run else "removed"
    for run in result.removed:
        echo(f"{word} {run.path} ({run.state}, {human_size(run.size_bytes)})")
    for run, reason in result.kept:
        echo(f"kept {run.path}: {reason}", err=True)
    number = len(result.removed)
    freed = "to be freed" if result.dry_run else "freed"
    echo(f"{number} {'run' if number == 1 else 'runs'}, {human_size(result.size_bytes)} {freed}")
