"""The command group, and the one place where an exception becomes a message and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import IngotError
from .options import Settings, echo_error, printable

COMMANDS = {
    "compress": ("compress", "Make a network as small, or fast, as delta allows."),
    "diff": ("diff", "Compare two models, layer by layer."),
    "evaluate": ("evaluate", "Measure models on a split, side by side."),
    "export": ("export", "Write a model in other formats, each proven equal."),
    "init": ("init", "Write a commented spec from a model."),
    "infer": ("infer", "Run a model on inputs from the shell or files."),
    "inspect": ("inspect", "Show what is inside a package or a model file."),
    "optimize": ("optimize", "Prune and quantize within one delta."),
    "package": ("package", "Turn the model of a spec into a verified package."),
    "profile": ("profile", "Count what a model computes and holds, and time it."),
    "quantize": ("quantize", "Use as few bits as delta allows: ONNX or TFLite."),
    "runs": ("runs", "List, show and remove the runs of searches and training."),
    "train": ("train", "Train the network of a spec; resumable."),
    "tune": ("tune", "Search the hyper-parameters of a spec."),
    "verify": ("verify", "Check a package: archive, hashes, golden data."),
}
"""Module (in this folder) and short help of each command: ``--help`` must import none of them."""

INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports of a command that SIGPIPE ended, 128 and the signal's number."""


class Interrupted(IngotError):
    """SIGINT, SIGTERM or SIGHUP ended the command (exit code 130)."""

    exit_code = INTERRUPTED

    def __init__(self) -> None:
        super().__init__("interrupted; nothing was written")


class _BrokenPipe(Exception):
    """The reader of our output (head, say) is gone."""


@contextmanager
def _own_exceptions() -> Iterator[None]:
    """Replace what click would handle in its own way, printing a blank line or exiting with 1."""
    try:
        yield
    except KeyboardInterrupt as error:
        if sys.stderr.isatty():
            click.echo(err=True)  # ends the line on which the terminal showed ^C
        raise Interrupted from error
    except BrokenPipeError as error:
        raise _BrokenPipe from error


class _LazyGroup(click.Group):
    """A group that imports a command only when it is used."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _own_exceptions():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _own_exceptions():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = import_module(f".{COMMANDS[name][0]}", __package__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            if near:
                message = f"{error.format_message()} Did you mean {near[0]!r}?"
                raise click.UsageError(message, ctx) from error
            raise


def _print_schema_path(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from pathlib import Path

        click.echo(Path(__file__).parent.parent / "specs" / "spec.schema.json")
        ctx.exit()


def _print_include_dir(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from pathlib import Path

        click.echo(Path(__file__).parent.parent / "cpp")
        ctx.exit()


@click.command(
    cls=_LazyGroup,
    name="ingot",
    epilog="Example: ingot package digits.yaml && ingot infer digits_cnn.ingot -i image=@one.json",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ingot", message="%(prog)s %(version)s")
@click.option(
    "--spec-schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema_path,
    help="Print where the JSON Schema of the spec lies, for editors.",
)
@click.option(
    "--include-dir",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_include_dir,
    help="Print the folder of ingot.hpp, for C++ compilers.",
)
def cli() -> None:
    """Turn a trained model of any common framework into a verified, portable artifact."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; see the table in docs/cli.md."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What nohup, say, had ignored stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    settings = Settings()
    if "--json" in arguments:
        settings.json = True
    try:
        code = cli.main(
            args=list(arguments), prog_name="ingot", standalone_mode=False, obj=settings
        )
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _usage(error, settings)
    except IngotError as error:
        return _report(error, error.message, error.hint, error.exit_code, settings)
    except (KeyboardInterrupt, click.exceptions.Abort):
        interrupted = Interrupted()
        return _report(interrupted, interrupted.message, None, INTERRUPTED, settings)
    except (_BrokenPipe, BrokenPipeError):
        _discard_output()
        return BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
        return _report(error, message, None, 1, settings)
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}"
        hint = "run it again with -vv for the traceback, and please report it"
        return _report(error, message, hint, 1, settings)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # A closed terminal sends SIGHUP twice; the second must not end the cleaning up for the first.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    raise KeyboardInterrupt


def _discard_output() -> None:
    """Send what is still to be written nowhere, so that Python does not complain at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _usage(error: click.ClickException, settings: Settings) -> int:
    message = error.format_message().rstrip()
    hint = None
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"{error.ctx.command_path} --help"
        if isinstance(error, click.NoSuchOption) and error.ctx.command is cli:
            hint = "options follow the command; " + hint
    return _report(error, message, hint, error.exit_code, settings)


def _report(
    error: BaseException, message: str, hint: str | None, code: int, settings: Settings
) -> int:
    """Say what went wrong: one line on stderr and one for the hint, and as JSON when asked for."""
    message = " ".join(message.split())
    try:
        _print_error(error, message, hint, settings)
        if settings.json:
            _print_json_error(error, message, hint, code)
    except OSError:  # the terminal was closed, or the reader is gone: the code still tells
        _discard_output()
    return code


def _print_error(error: BaseException, message: str, hint: str | None, settings: Settings) -> None:
    if settings.verbosity >= 2:
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            echo_error(printable(line))
    echo_error(f"{click.style('error:', fg='red', bold=True)} {printable(message)}")
    if hint:
        echo_error(f"{click.style('hint:', fg='cyan')} {printable(hint)}")


def _print_json_error(error: BaseException, message: str, hint: str | None, code: int) -> None:
    details: dict[str, Any] = {
        "type": type(error).__name__,
        "message": message,
        "hint": hint,
        "exit_code": code,
    }
    for name in ("file", "line", "key"):
        value = getattr(error, name, None)
        if isinstance(value, str | int | os.PathLike):
            details[name] = value if isinstance(value, int) else os.fspath(value)
    click.echo(json.dumps({"schema_version": 1, "error": details}, indent=2))
