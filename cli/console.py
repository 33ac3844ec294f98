"""Renders results for people: tables that fit 80 columns, plain text when piped."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from .options import TerminalHandler, echo_error, printable

if TYPE_CHECKING:
    from ..commands.infer import InferResult
    from ..commands.package import PackageResult
    from ..commands.verify import VerifyResult
    from .options import Settings

_STYLES = {"pass": "green", "fail": "bold red", "skip": "yellow"}

_PIPED_WIDTH = 100
_NARROW = 60
"""Terminals of fewer columns show names and sizes of files only."""
_MOST_DETAILS = 10
_LARGE = 64 << 20
"""Hashing fewer bytes than this takes too short a time for a bar to be read."""


class StyledTable(Table):
    """A table in whose texts control characters are shown, not sent to the terminal."""

    def add_row(
        self,
        *renderables: RenderableType | None,
        style: StyleType | None = None,
        end_section: bool = False,
    ) -> None:
        cells = (printable(cell) if isinstance(cell, str) else cell for cell in renderables)
        super().add_row(*cells, style=style, end_section=end_section)


def echo(text: str, err: bool = False) -> None:
    """Print a line, with control characters shown as escapes."""
    click.echo(printable(text), err=err)


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, width=width, markup=False)


def print_table(table: Table) -> None:
    """Print a table; without the blanks that fill its lines where no terminal shows them."""
    console = _console()
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


@contextmanager
def lines_above(console: Console) -> Iterator[None]:
    """Let messages appear above what a console draws at its end, such as a bar."""
    handlers = [
        handler
        for handler in logging.getLogger("ingot").handlers
        if isinstance(handler, TerminalHandler)
    ]
    for handler in handlers:
        handler.echo = lambda line: console.print(Text.from_ansi(line))
    try:
        yield
    finally:
        for handler in handlers:
            handler.echo = echo_error


def _fields() -> StyledTable:
    table = StyledTable(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _tensor(entry: Mapping[str, Any]) -> str:
    shape = entry["shape"]
    if shape is None:
        text = "any shape"
    elif not shape:
        text = "scalar"
    else:
        text = "(" + ", ".join("any" if dim is None else str(dim) for dim in shape) + ")"
    optional = ", optional" if entry.get("optional") else ""
    return f"{entry['name']}: {entry['dtype'] or 'any type'} {text}{optional}"


def human_size(count: float) -> str:
    """Return a size in bytes with a binary unit: ``1.2 MiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024 or unit == "GiB":
            return f"{count:.1f} {unit}"
    raise AssertionError


def print_package(result: PackageResult) -> None:
    """Print what ``package`` wrote."""
    golden = {
        "given": "checked against the given outputs",
        "recorded": "outputs of the source recorded and reproduced",
        None: "none (name test.inputs in the spec to have them recorded)",
    }
    table = _fields()
    table.add_row("package", str(result.path))
    table.add_row("model", f"{result.name} ({result.platform})")
    for entry in result.inputs:
        table.add_row("input", _tensor(entry.to_dict()))
    for entry in result.outputs:
        table.add_row("output", _tensor(entry.to_dict()))
    table.add_row("golden data", golden[result.golden])
    table.add_row("size", human_size(result.size_bytes))
    table.add_row("sha256", result.sha256)
    print_table(table)


def print_infer(result: InferResult, to_stdout: bool) -> None:
    """Print the outputs of ``infer``, and its timing."""
    import numpy as np

    if result.path is not None:
        rows = "" if result.rows is None else f" ({result.rows} rows)"
        echo(f"{result.path}{rows}")
    elif to_stdout:
        for name, array in result.outputs.items():
            dtype = "string" if array.dtype.kind == "U" else array.dtype.name
            echo(f"{name}: {dtype} {tuple(array.shape)}")
            # NumPy shows strings as Python does, with escapes.
            click.echo(np.array2string(array, max_line_width=78, threshold=200))
    timing = result.timing()
    if timing is not None:
        echo(
            f"{timing['calls']} calls: median {timing['median_ms']:.3f} ms, mean"
            f" {timing['mean_ms']:.3f} ms, min {timing['min_ms']:.3f} ms,"
            f" max {timing['max_ms']:.3f} ms",
            err=not to_stdout,
        )


def print_description(description: Mapping[str, Any]) -> None:
    """Print what ``inspect`` found."""
    table = _fields()
    kind = "file" if description["kind"] == "model" else description["kind"]
    table.add_row(kind, description["path"])
    platform = description.get("platform", description["framework"])
    framework = description["framework"]
    runs_on = framework if platform == framework else f"{platform} ({framework} code)"
    table.add_row("model", f"{description['name']}, {runs_on}")
    for kind in ("inputs", "outputs"):
        entries = description[kind]
        for entry in entries or ():
            table.add_row(kind[:-1], _tensor(entry))
        if not entries:
            table.add_row(kind, "the file does not say")
    if description.get("size_bytes") is not None:
        table.add_row("size", human_size(description["size_bytes"]))
    if description.get("sha256"):
        table.add_row("sha256", description["sha256"])
    if description["kind"] == "package":
        _add_package_fields(table, description)
    print_table(table)
    if description.get("files"):
        click.echo()
        print_table(_files(description["files"]))


def _add_package_fields(table: Table, description: Mapping[str, Any]) -> None:
    version = description["format_version"]
    written = description["written_by"]
    table.add_row("written by", written if version is None else f"{written}, format {version}")
    if description["platform_version_semver"] != "*":
        table.add_row(
            "needs", f"{description['platform']} {description['platform_version_semver']}"
        )
    if description["custom_ops"]:
        table.add_row("custom ops", ", ".join(description["custom_ops"]))
    if description["runs_code"]:
        table.add_row("code", f"{description['runs_code']}: runs only with --trust-code")
    if description["requirements"] is not None:
        pins = [line for line in description["requirements"] if line and line[0] != "#"]
        table.add_row("requirements", f"{len(pins)} locked")
    golden = description["golden"]
    if golden is not None:
        names = [*golden["inputs"], "->", *golden["outputs"]]
        tolerance = f"rtol {golden['rtol']:g}, atol {golden['atol']:g}"
        table.add_row("golden data", f"{' '.join(names)}, {tolerance}")
    elif description["golden_error"]:
        table.add_row("golden data", f"damaged: {description['golden_error']}")
    else:
        unread = description["golden_file"]
        table.add_row("golden data", f"{unread}, a pickle: not read" if unread else "none")
    provenance = description["provenance"] or {}
    if provenance.get("created_by"):
        table.add_row("created by", provenance["created_by"])
    if provenance.get("framework"):
        found = provenance["framework"]
        table.add_row("created with", f"{found['name']} {found['version']}")
    if provenance.get("spec"):
        table.add_row("spec", f"{provenance['spec']['file']} {provenance['spec']['sha256'][:16]}")
    if description["license"]:
        table.add_row("license", description["license"])


def _files(files: list[Mapping[str, Any]]) -> StyledTable:
    table = StyledTable(box=None, padding=(0, 2, 0, 0))
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    wide = _console().width >= _NARROW
    if wide:
        table.add_column("packed", justify="right", no_wrap=True)
        table.add_column("sha256", no_wrap=True)
    for entry in files:
        cells = [entry["name"], human_size(entry["size_bytes"])]
        if wide:
            cells += [human_size(entry["packed_bytes"]), (entry["sha256"] or "-")[:16]]
        table.add_row(*cells)
    return table


def print_checks(result: VerifyResult) -> None:
    """Print the checks of ``verify``, one a row; of many problems of one check the first ten."""
    from rich.text import Text

    table = StyledTable(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for check in result.checks:
        status = Text(check.status.upper(), style=_STYLES[check.status])
        first, *others = check.details[:_MOST_DETAILS] or (check.message,)
        table.add_row(status, check.name, first)
        for detail in others:
            table.add_row("", "", detail)
        if len(check.details) > _MOST_DETAILS:
            table.add_row("", "", f"and {len(check.details) - _MOST_DETAILS} more")
    print_table(table)
    verdict = "verified" if result.exit_code == 0 else "NOT verified"
    echo(f"{result.path}: {verdict}")


@contextmanager
def hash_progress(settings: Settings) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar with the remaining time while files are hashed; nothing when piped or quiet."""
    console = _console(stderr=True)
    if settings.verbosity < 0 or not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("hashing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: list[TaskID] = []

        def advance(done: int, total: int) -> None:
            if total < _LARGE:
                return
            if not tasks:
                tasks.append(bar.add_task("hashing", total=total))
            bar.update(tasks[0], completed=done)

        yield advance
