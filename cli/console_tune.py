"""Renders searches of hyper-parameters: a line a trial, the table of the best."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from ..reports.numbers import duration
from .console import StyledTable, _console, _fields, echo, lines_above, print_table
from .console_train import _numbers, number

if TYPE_CHECKING:
    from ..commands.tune_result import TuneEvent, TuneResult
    from ..optimizers.study import TrialRecord
    from .options import Settings

_STYLES = {
    "complete": "green",
    "failed": "bold red",
    "timeout": "yellow",
    "interrupted": "yellow",
    "running": "cyan",
}
_MOST_SHOWN = 10


@contextmanager
def tune_progress(settings: Settings) -> Iterator[Callable[[TuneEvent], None]]:
    """Show how far a search is: a line a trial, and on a terminal a bar of the present one.

    What the user's code prints is no part of the one document of ``--json``.
    """
    console = _console(stderr=True)
    quiet = redirect_stdout(sys.stderr) if settings.json else nullcontext()
    if settings.verbosity < 0 or not console.is_terminal:
        with quiet:
            yield lambda event: _print_event(settings, event)
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[numbers]}"),
    )
    bar = Progress(*columns, console=console, transient=True)
    tasks: list[TaskID] = []

    def show(event: TuneEvent) -> None:
        _print_event(settings, event)
        if event.kind == "begun":
            text = f"trial {event.trial} of {event.trials}"
            tasks.append(bar.add_task(text, total=None, numbers=""))
        elif event.kind == "training" and event.training is not None and tasks:
            training = event.training
            numbers = f"epoch {training.epoch}/{training.epochs}  {_numbers(training)}"
            total = training.total_steps
            bar.update(tasks[-1], total=total, completed=training.step, numbers=numbers)
        elif event.kind == "ended" and tasks:
            bar.remove_task(tasks.pop())

    with bar, lines_above(bar.console), quiet:
        yield show


def _print_event(settings: Settings, event: TuneEvent) -> None:
    if event.kind == "note":
        settings.progress(event.text)
    elif event.kind == "begun":
        settings.progress(f"trial {event.trial}  {params_text(event.params or {})}")
    elif event.kind == "training" and event.training is not None and settings.verbosity > 0:
        training = event.training
        if training.kind == "evaluation":
            line = f"epoch {training.epoch}/{training.epochs}  {_numbers(training)}"
            settings.progress(f"trial {event.trial}  {line}")
    elif event.kind == "ended" and event.record is not None:
        settings.progress(_ended(event, event.record))


def _ended(event: TuneEvent, record: TrialRecord) -> str:
    parts = [f"trial {record.number}  {record.state}"]
    if record.value is not None:
        parts.append(f"{record.facts.get('eval_key') or 'best'} {number(record.value)}")
    if record.state in ("failed", "timeout") and record.facts.get("reason"):
        parts[0] += f": {record.facts['reason']}"
    parts.append(duration(record.facts.get("seconds")))
    if event.best is not None and event.best.value is not None:
        parts.append(f"best {number(event.best.value)} (trial {event.best.number})")
    if event.seconds_left is not None:
        parts.append(f"about {duration(event.seconds_left)} left")
    return "  ".join(parts)


def params_text(params: Mapping[str, Any]) -> str:
    """Return parameters on a line, by the shortest ends of their keys that tell them apart."""
    names = short_names(list(params))
    return " ".join(f"{names[name]}={_value(value)}" for name, value in params.items())


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return, for each dotted key, the shortest end of it that no other key has."""
    found = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            end = ".".join(parts[-length:])
            if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
                break
        found[key] = end
    return found


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def print_tune(result: TuneResult) -> None:
    """Print what a search found: the best trials, and where everything is."""
    table = StyledTable(box=None, padding=(0, 2, 0, 0))
    table.add_column("trial", justify="right", no_wrap=True, style="cyan")
    table.add_column("state", no_wrap=True)
    table.add_column(result.eval_key or "metric", justify="right", no_wrap=True)
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("parameters", overflow="fold", max_width=38)
    from rich.text import Text

    ranked = result.ranked()
    for trial in ranked[:_MOST_SHOWN]:
        epochs = trial.facts.get("epochs")
        table.add_row(
            str(trial.number),
            Text(trial.state, style=_STYLES.get(trial.state, "")),
            "-" if trial.value is None else number(trial.value),
            "-" if epochs is None else str(epochs),
            duration(trial.facts.get("seconds")),
            params_text(trial.params),
        )
    print_table(table)
    if len(ranked) > _MOST_SHOWN:
        echo(f"and {len(ranked) - _MOST_SHOWN} more trials")
    echo("")
    fields = _fields()
    best = result.best
    if best is not None and best.value is not None:
        fields.add_row("best", f"{result.eval_key} {number(best.value)}, trial {best.number}")
    fields.add_row("trials", _counts(result))
    if result.stopped_by == "max_time":
        fields.add_row("stopped", "by --max-time; the same command goes on")
    elif result.stopped_by == "exhausted":
        fields.add_row("stopped", "every combination was tried")
    if result.best_spec is not None:
        fields.add_row("spec", str(result.best_spec))
    if result.weights is not None:
        fields.add_row("weights", str(result.weights))
    fields.add_row("folder", str(result.run_dir))
    print_table(fields)


def _counts(result: TuneResult) -> str:
    states = ("complete", "pruned", "timeout", "failed", "interrupted", "running")
    counted = [f"{result.count(state)} {state}" for state in states if result.count(state)]
    return f"{result.finished} of {result.wanted} ended: {', '.join(counted) or 'none'}"
