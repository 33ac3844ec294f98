"""The command group, and the one place where an exception becomes a message and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import IngotError
from .options import Settings, echo_error

COMMANDS = {
    "init": ("init", "Write a commented spec from a model."),
    "infer": ("infer", "Run a model on inputs from the shell or files."),
    "inspect": ("inspect", "Show what is inside a package or a model file."),
    "package": ("package", "Turn the model of a spec into a verified package."),
    "verify": ("verify", "Check a package: archive, hashes, golden data."),
}
"""Module (in this folder) and short help of each command: ``--help`` must import none of them."""

INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group that imports a command only when it is used."""

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
def cli() -> None:
    """Turn a trained model of any common framework into a verified, portable artifact."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; see the table in docs/cli.md."""
    signal.signal(signal.SIGTERM, _terminate)
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
    except (KeyboardInterrupt, click.exceptions.Abort) as error:
        return _report(error, "interrupted; nothing was written", None, INTERRUPTED, settings)
    except BrokenPipeError:
        # The reader of our output (head, say) is gone; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
        return _report(error, message, None, 1, settings)
    except Exception as error:
        message = f"unexpected {type(error).__name__}: {error}"
        hint = "run it again with -vv for the traceback, and please report it"
        return _report(error, message, hint, 1, settings)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


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
    if settings.verbosity >= 2:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    message = " ".join(message.split())
    echo_error(f"{click.style('error:', fg='red', bold=True)} {message}")
    if hint:
        echo_error(f"{click.style('hint:', fg='cyan')} {hint}")
    if settings.json:
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
    return code
