"""Renders training runs and evaluations: a bar on a terminal, plain lines elsewhere, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..reports.numbers import duration
from .console import StyledTable, _console, _fields, human_size, print_table

if TYPE_CHECKING:
    from ..commands.evaluate_result import EvaluateResult
    from ..commands.train_result import TrainResult
    from ..training.progress import TrainProgress
    from .options import Settings


def number(value: float) -> str:
    """Return a number with the digits that matter: ``87.49``, ``0.3127``, ``1.2e-05``."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) < 1e6 else f"{value:g}"
    return f"{value:.3g}"


def _numbers(event: TrainProgress) -> str:
    parts = []
    for name, value in event.record.items():
        if name == "samples_per_second":
            parts.append(f"{value:,.0f} samples/s")
        elif name != "learning_rate":
            parts.append(f"{name} {number(value)}")
    if event.eval_key is not None and event.eval_key in event.metrics:
        parts.append(f"{event.eval_key} {number(event.metrics[event.eval_key])}")
    return "  ".join(parts)


@contextmanager
def train_progress(settings: Settings) -> Iterator[Callable[[TrainProgress], None] | None]:
    """Show how far a run is: a bar on a terminal, a line an epoch elsewhere, nothing with -q."""
    if settings.verbosity < 0:
        yield None
        return
    console = _console(stderr=True)
    if not console.is_terminal:
        yield lambda event: _print_line(settings, event)
        return
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: list[TaskID] = []

        def show(event: TrainProgress) -> None:
            left = "" if event.seconds_left is None else f"{duration(event.seconds_left)} left"
            fields: dict[str, Any] = {
                "epoch": f"{event.epoch}/{event.epochs}",
                "numbers": _numbers(event),
                "left": left,
            }
            if not tasks:
                tasks.append(bar.add_task("train", total=event.total_steps, **fields))
            bar.update(tasks[0], completed=event.step, **fields)

        yield show


def _print_line(settings: Settings, event: TrainProgress) -> None:
    if event.kind != "evaluation":
        return
    parts = [f"epoch {event.epoch}/{event.epochs}", _numbers(event)]
    if event.seconds_left:
        parts.append(f"{duration(event.seconds_left)} left")
    settings.progress("  ".join(part for part in parts if part))


def print_train(result: TrainResult) -> None:
    """Print what ``train`` made."""
    table = _fields()
    table.add_row("weights", str(result.weights))
    table.add_row("size", human_size(result.weights.stat().st_size))
    for name, value in result.metrics.items():
        table.add_row(name, number(value))
    best = result.best
    if best and best["value"] is not None:
        table.add_row("best", f"{result.eval_key} {number(best['value'])}, epoch {best['epoch']}")
    steps = f", {result.steps:,} steps" if result.steps else ""
    table.add_row("trained", f"{result.epochs} epochs{steps} in {duration(result.elapsed_seconds)}")
    if result.stop_reason is not None:
        table.add_row("stopped", result.stop_reason)
    table.add_row("device", result.device)
    print_table(table)


def print_evaluation(result: EvaluateResult) -> None:
    """Print metrics: of one model one a row, of several one table with a model a row."""
    entries = result.entries
    if len(entries) == 1:
        fields = _fields()
        for name, value in entries[0].metrics.items():
            fields.add_row(name, number(value))
        fields.add_row("samples", _count(entries[0].samples))
        print_table(fields)
        return
    names = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    table = StyledTable(box=None, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    for entry in entries:
        cells = [number(entry.metrics[name]) if name in entry.metrics else "-" for name in names]
        table.add_row(entry.model, *cells)
    print_table(table)


def _count(samples: int | None) -> str:
    return "unknown" if samples is None else f"{samples:,}"
