"""Renders profiles, and what one model gains over another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import StyledTable, echo, print_table

if TYPE_CHECKING:
    from ..commands.profile_result import ProfiledModel, ProfileResult

_LABELS = {
    "size_bytes": "model size",
    "macs": "complexity",
    "parameters": "parameters",
    "memory_bytes": "memory footprint",
    "latency_ms": "execution time",
}


def print_profile(result: ProfileResult, layers: bool) -> None:
    """Print the table, the layers when they are asked for, and what was not counted."""
    models = [result.model] if result.other is None else [result.model, result.other]
    table = StyledTable(box=None, show_header=len(models) > 1, padding=(0, 2, 0, 0))
    table.add_column("", style="cyan", no_wrap=True)
    for title in ("reference", "compared")[: len(models)]:
        table.add_column(title, overflow="fold", justify="right" if len(models) > 1 else "left")
    if result.other is not None:
        table.add_column("enhancement", justify="right", no_wrap=True)
    table.add_row("model", *(model.label for model in models))
    table.add_row("framework", *(model.framework for model in models))
    for name in dict.fromkeys(name for model in models for name in model.metrics):
        values = [f"{it.metrics[name]:.4f}" if name in it.metrics else "-" for it in models]
        change = result.differences.get(name)
        table.add_row(name, *values, *([] if change is None else [f"{change:+.4f}"]))
    for key, label in _LABELS.items():
        ratio = result.enhancements.get(key)
        last = [] if result.other is None else ["-" if ratio is None else f"{ratio:.2f}x"]
        table.add_row(label, *(_shown(key, model.value(key)) for model in models), *last)
        if key == "macs":
            table.add_row("  of matrix products", *(_matrix(model) for model in models))
        if key == "latency_ms":
            table.add_row("  quartiles", *(_spread(model) for model in models))
    print_table(table)
    latency = result.model.profile.latency
    devices = dict.fromkeys(model.profile.device for model in models)
    count, batch = result.model.threads, result.model.batch_size
    echo("")
    echo(
        f"execution time: median of {latency.runs} calls, {latency.warm_up} to warm up, batch"
        f" {batch}, {count} {'thread' if count == 1 else 'threads'}, {', '.join(devices)}"
    )
    for model in models:
        for note in model.profile.complexity.notes:
            echo(f"{model.label}: {note}")
    for model in models if layers else []:
        echo("")
        if len(models) > 1:
            echo(model.label)
        _print_layers(model)
    if result.csv is not None:
        echo(f"layers: {result.csv}")


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key in ("size_bytes", "memory_bytes"):
        return f"{value / 2**20:.4f} MB"
    if key == "macs":
        return _operations(value)
    if key == "parameters":
        return f"{value / 1e6:.4f} M"
    return f"{value:.3f} ms"


def _operations(value: float) -> str:
    return f"{value / 1e9:.4f} GMACs" if value >= 1e7 else f"{value / 1e6:.4f} MMACs"


def _matrix(model: ProfiledModel) -> str:
    value = model.profile.complexity.matrix_macs
    return "-" if value is None else _operations(value)


def _spread(model: ProfiledModel) -> str:
    latency = model.profile.latency
    return f"{latency.p25_ms:.3f} to {latency.p75_ms:.3f} ms"


def _print_layers(model: ProfiledModel) -> None:
    layers = model.profile.complexity.layers
    if not layers:
        echo("its layers cannot be told")
        return
    table = StyledTable(box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold")
    table.add_column("type", overflow="fold")
    table.add_column("output", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for layer in layers:
        shape = layer.output_shape
        table.add_row(
            layer.name,
            layer.kind,
            "-" if shape is None else "x".join(map(str, shape)) or "scalar",
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            f"{100 * model.share(layer.macs):.1f} %",
        )
    print_table(table)
