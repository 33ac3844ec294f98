"""Options that several commands share, as decorators, and the settings that they fill."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from .durations import Duration

SCHEMA_VERSION = 1
"""Version of the documents that ``--json`` prints."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class Settings:
    """How a command talks.

    Attributes:
        json: standard output is exactly one JSON document.
        verbosity: -1 quiet, 0 normal, 1 with details, 2 with tracebacks.
        log_file: everything is also written here, with times.
    """

    json: bool = False
    verbosity: int = 0
    log_file: Path | None = None

    def progress(self, line: str) -> None:
        """Print a line of progress to stderr, and to the log file."""
        logging.getLogger("ingot").info("%s", line)

    def print_json(self, document: Mapping[str, Any], has_arrays: bool = False) -> None:
        """Print the one JSON document of this command; what is no finite number is null.

        Args:
            document: its values.
            has_arrays: a list of nothing but numbers, such as the row of a mask, goes on one line.
        """
        whole = _finite({"schema_version": SCHEMA_VERSION, **document})
        text = json.dumps(whole, indent=2, allow_nan=False)
        click.echo(_NUMBERS.sub(_on_one_line, text) if has_arrays else text)

    def start_logging(self) -> None:
        """Send the messages of Ingot's logger to stderr, and to the log file."""
        logger = logging.getLogger("ingot")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.DEBUG)
        terminal = TerminalHandler()
        terminal.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(self.verbosity, logging.DEBUG))
        logger.addHandler(terminal)
        if self.log_file is not None:
            try:
                file = logging.FileHandler(self.log_file, encoding="utf-8")
            except OSError as error:
                raise click.BadParameter(
                    f"{self.log_file}: {error.strerror}", param_hint="--log-file"
                ) from error
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(file)


def _finite(value: Any) -> Any:
    """Return JSON values with null for NaN and infinity, which JSON has no numbers for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


_NUMBERS = re.compile(r"\[\n\s+[-+.\deE]+(?:,\n\s+[-+.\deE]+)*\n\s*\]")
"""A list of numbers in indented JSON; within a text, JSON has no line breaks."""


def _on_one_line(found: re.Match[str]) -> str:
    return re.sub(r",\s+", ", ", re.sub(r"(?<=\[)\s+|\s+(?=\])", "", found[0]))


class TerminalHandler(logging.Handler):
    """Prints messages, or hands them to what draws on the terminal meanwhile.

    Attributes:
        echo: prints a line, which may have colours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.echo: Callable[[str], None] = echo_error

    def emit(self, record: logging.LogRecord) -> None:
        message = "\n".join(printable(line) for line in record.getMessage().splitlines())
        if record.levelno >= logging.WARNING:
            message = f"{click.style('warning:', fg='yellow')} {message}"
        self.echo(message)


def printable(text: str) -> str:
    """Return text with what is not printable shown as an escape (``\\x1b``).

    Names in a package are its author's: they must not be able to steer the terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def echo_error(message: str) -> None:
    """Print a line to stderr; colours are dropped when it is no terminal, or NO_COLOR is set."""
    click.echo(message, err=True, color=False if os.environ.get("NO_COLOR") else None)


def common_options(function: Function) -> Function:
    """Add ``--json``, ``-q``, ``-v`` and ``--log-file``; the function gets a :class:`Settings`."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print results, warnings and errors only.")
    @click.option(
        "-v", "--verbose", count=True, help="Print details; -vv prints tracebacks. May repeat."
    )
    @click.option(
        "--log-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Also write all messages, with times, to this file.",
    )
    @click.pass_obj
    @wraps(function)
    def wrapper(
        settings: Settings | None,
        *args: Any,
        as_json: bool,
        quiet: bool,
        verbose: int,
        log_file: Path | None,
        **kwargs: Any,
    ) -> Any:
        settings = settings or Settings()
        settings.json = as_json
        settings.verbosity = -1 if quiet else verbose
        settings.log_file = log_file
        settings.start_logging()
        return function(settings, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


def trust_options(function: Function) -> Function:
    """Add ``--trust-code`` and ``--ignore-lock``."""
    function = click.option(
        "--ignore-lock",
        is_flag=True,
        help="Run even if locked requirements differ from what is installed.",
    )(function)
    return trust_code_option(function)


def trust_code_option(function: Function) -> Function:
    """Add ``--trust-code``."""
    return click.option(
        "--trust-code",
        is_flag=True,
        help="Let the package run code that it carries (Python, native operators).",
    )(function)


def isolation_options(function: Function) -> Function:
    """Add the options of worker processes; the function gets them as ``isolation``, a mapping."""

    @click.option("--isolate", is_flag=True, help="Run the model in worker processes of its own.")
    @click.option(
        "--python",
        metavar="EXE",
        help="The workers' interpreter (needs NumPy and the framework only).",
    )
    @click.option("--workers", type=int, metavar="N", help="Worker processes (1).")
    @click.option(
        "--timeout", type=Duration(), metavar="TIME", help="What one call may take (2, 15m)."
    )
    @click.option(
        "--start-timeout", type=Duration(), metavar="TIME", help="What loading may take (2m)."
    )
    @click.option("--memory-limit", metavar="SIZE", help="Memory that a worker may use (2G).")
    @click.option("--cpus", metavar="LIST", help="CPUs that the workers share (0,2-5).")
    @click.option(
        "--install-lock",
        is_flag=True,
        help="Install the package's locked requirements for its workers.",
    )
    @wraps(function)
    def wrapper(
        *args: Any,
        isolate: bool,
        python: str | None,
        workers: int | None,
        timeout: float | None,
        start_timeout: float | None,
        memory_limit: str | None,
        cpus: str | None,
        install_lock: bool,
        **kwargs: Any,
    ) -> Any:
        isolation = {
            "isolate": isolate,
            "python": python,
            "workers": workers,
            "timeout": timeout,
            "start_timeout": start_timeout,
            "memory_limit": memory_limit,
            "cpus": cpus,
            "install_lock": install_lock,
        }
        return function(*args, isolation=isolation, **kwargs)

    return wrapper  # type: ignore[return-value]


def set_option(function: Function) -> Function:
    """Add ``--set``, which fills ``overrides``."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of the spec (test.atol=1e-6). May repeat.",
    )(function)


def force_option(function: Function) -> Function:
    """Add ``--force``."""
    return click.option("--force", is_flag=True, help="Replace an existing output.")(function)
