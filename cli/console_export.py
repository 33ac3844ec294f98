"""Renders what ``export`` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .console import StyledTable, echo, human_size, print_table

if TYPE_CHECKING:
    from ..commands.export_result import ExportResult


def print_export(result: ExportResult) -> None:
    """Print one row a file: its name, how large, how far from its source, how fast."""
    table = StyledTable(box=None, padding=(0, 1, 0, 0))
    table.add_column("format", style="cyan", no_wrap=True)
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("latency", justify="right", no_wrap=True)
    table.add_column("sha256", no_wrap=True)
    for artifact in result.artifacts:
        table.add_row(
            artifact.format,
            artifact.path.name,
            human_size(artifact.size_bytes),
            f"{artifact.parity.worst.scaled:.1e}",
            f"{artifact.parity.latency_ms:.2f} ms",
            artifact.sha256[:8],
        )
    print_table(table)
    for metric in sorted(result.reference_metrics or {}):
        reference = (result.reference_metrics or {})[metric]
        found = [
            (artifact.metrics[metric], artifact.path.name)
            for artifact in result.artifacts
            if artifact.metrics and metric in artifact.metrics
        ]
        echo(f"{metric} {reference:.6g}; {_range(found)}")
    if result.folded:
        echo(f"BatchNorm folded: {len(result.folded)}")
    folder = result.artifacts[0].path.parent
    echo(f"in {folder}, each within {result.artifacts[0].parity.tolerance:g} of {result.name}")


def _range(found: Sequence[tuple[float, str]]) -> str:
    """Say what was measured on the files: whether more is better depends on the metric."""
    if not found:
        return "no file takes the data's size"
    (low, lowest), (high, highest) = min(found), max(found)
    if low == high:
        return f"of the files {low:.6g}"
    return f"of the files {low:.6g} ({lowest}) to {high:.6g} ({highest})"
