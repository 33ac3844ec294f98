"""Renders how a search ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reports.comparison import HEADINGS, comparison_rows, headline
from ..reports.numbers import duration
from .console import StyledTable, _console, _fields, echo, human_size, lines_above, print_table

if TYPE_CHECKING:
    from ..commands.search_run import Progress, Watch
    from ..optimizers.budget import Budget, Forecast
    from .options import Settings

_STYLES = {"met": "green", "missed": "bold red", "interrupted": "yellow"}


@contextmanager
def search_progress(settings: Settings) -> Iterator[tuple[Progress, Watch | None]]:
    """Show how far a search is: a bar below its lines on a terminal, lines alone elsewhere."""
    console = _console(stderr=True)
    if settings.verbosity < 0 or not console.is_terminal:
        yield settings.progress, None
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    watched: list[tuple[Budget, Forecast]] = []

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            if not watched:
                return Text("")
            budget, plan = watched[0]
            task.completed = budget.evaluations
            left = plan.seconds * max(0, plan.max_evaluations - budget.evaluations)
            left = min(left / plan.max_evaluations, max(0.0, plan.max_seconds - budget.elapsed))
            done = f"{budget.evaluations} of at most {plan.max_evaluations} evaluations"
            return Text(f"{done}, {duration(budget.elapsed)}, about {duration(left)} left")

    columns = (TextColumn("search"), BarColumn(bar_width=16), Left())
    bar = Progress(*columns, console=console, transient=True)
    with bar, lines_above(bar.console):

        def watch(budget: Budget, plan: Forecast) -> None:
            watched.append((budget, plan))
            bar.add_task("search", total=plan.max_evaluations)

        yield settings.progress, watch


def print_verdict(verdict: Mapping[str, Any]) -> None:
    """Print the verdict: one line, the comparison, where everything is."""
    table = StyledTable(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in comparison_rows(verdict):
        table.add_row(*row.cells)
    print_table(table)
    fields = _fields()
    fields.add_row("verdict", headline(verdict), style=_STYLES[verdict["verdict"]])
    if verdict["reason"]:
        fields.add_row("reason", verdict["reason"])
    confirmed = verdict["confirmed"]
    if confirmed is not None:
        text = f"drop {confirmed['drop']:.4g} on the split {confirmed['split']}"
        fields.add_row("confirmed", text)
    phases = ", ".join(f"{name} {seconds:.0f}s" for name, seconds in verdict["phases"].items())
    fields.add_row(
        "search",
        f"{verdict['evaluations']} evaluations, {verdict['epochs']:g} epochs,"
        f" {verdict['elapsed_seconds']:.0f}s ({phases})",
    )
    for item in verdict["artifacts"]:
        path = Path(item["path"])
        fields.add_row("file", f"{path.name} ({item['format']}, {human_size(item['size_bytes'])})")
    fields.add_row("folder", verdict["run_dir"])
    echo("")
    print_table(fields)


def print_layers(table: Mapping[str, Any]) -> None:
    """Print the layers that can be quantized, with what the rules make of them."""
    shown = StyledTable(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("index", "layer", "op", "shape", "bits", ""):
        is_number = heading in ("index", "bits")
        shown.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for layer in table["layers"]:
        shape = "x".join(map(str, layer["shape"]))
        cells = (str(layer["index"]), layer["name"], layer["op"], shape, layer["bits"])
        shown.add_row(*cells, layer["reason"] or "")
    print_table(shown)
