"""Renders how a search ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..reports.comparison import HEADINGS, comparison_rows, headline
from .console import StyledTable, _fields, echo, human_size, print_table

_STYLES = {"met": "green", "missed": "bold red", "interrupted": "yellow"}


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
