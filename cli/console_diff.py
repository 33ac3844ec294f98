"""Renders how two models differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import StyledTable, echo, human_size, print_table

if TYPE_CHECKING:
    from ..commands.diff import DiffResult
    from ..runtime.layers import LayerDifference

_MOST_LAYERS = 20


def print_diff(result: DiffResult, show_all: bool) -> None:
    """Print both models, their outputs, and the layers up to where they part."""
    models = StyledTable(box=None, padding=(0, 2, 0, 0))
    models.add_column("", style="cyan", no_wrap=True)
    models.add_column("model", overflow="fold")
    models.add_column("framework", no_wrap=True)
    models.add_column("size", justify="right", no_wrap=True)
    models.add_column("latency", justify="right", no_wrap=True)
    for side, model in (("first", result.first), ("second", result.second)):
        size = "-" if model.size_bytes is None else human_size(model.size_bytes)
        models.add_row(side, model.label, model.framework, size, f"{model.latency_ms:.3f} ms")
    print_table(models)
    echo("")
    print_table(_differences("output", result.outputs, result))
    layers = result.layers
    if layers:
        start = 0 if show_all else _first_shown(result)
        shown = layers if show_all else layers[start : start + _MOST_LAYERS]
        echo("")
        print_table(_differences("layer", shown, result))
        if len(shown) < len(layers):
            echo(f"layers {start + 1} to {start + len(shown)} of {len(layers)} (--all: every one)")
    echo("")
    if result.divergence is not None and not result.equal:
        part = result.divergence
        other = f", {part.other} in the second" if part.other != part.name else ""
        echo(f"the models part at {part.name} ({part.kind}{other}): {_of_scale(part)}")
    elif layers and not result.equal:
        echo(f"no layer above differs by more: the models part after {layers[-1].name}")
    verdict = "agree" if result.equal else "DIFFER"
    echo(f"the outputs {verdict} on {result.inputs} inputs (tolerance {result.tolerance:g})")


def _first_shown(result: DiffResult) -> int:
    """Return where the layers shown begin: with the first, unless the models part further down."""
    if result.divergence is None:
        return 0
    index = result.layers.index(result.divergence)
    last = max(0, len(result.layers) - _MOST_LAYERS)
    return 0 if index < _MOST_LAYERS else min(index - _MOST_LAYERS // 2, last)


def _of_scale(entry: LayerDifference) -> str:
    return f"by {entry.relative:.1e} of its largest value"


def _differences(
    title: str, entries: tuple[LayerDifference, ...], result: DiffResult
) -> StyledTable:
    table = StyledTable(box=None, padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    table.add_column("type", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("max error", justify="right", no_wrap=True)
    table.add_column("of scale", justify="right", no_wrap=True)
    table.add_column("SNR", justify="right", no_wrap=True)
    for entry in entries:
        over = not entry.relative <= result.tolerance
        snr = "equal" if entry.snr_db is None else f"{entry.snr_db:.1f} dB"
        name, _, others = entry.name.partition(";")  # TFLite joins the names of fused layers
        table.add_row(
            f"{name};..." if others else name,
            "" if title == "output" else entry.kind,
            "x".join(map(str, entry.shape)) or "scalar",
            f"{entry.max_absolute:.1e}",
            f"{entry.relative:.1e}",
            snr,
            style="bold red" if over else None,
        )
    return table
