"""``ingot verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import Settings, common_options, set_option, trust_options

_SPECS = "that of the spec"


class _Delta(click.ParamType):  # type: ignore[type-arg]
    """A number; the option alone stands for the spec's own."""

    name = "X"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if value == _SPECS or isinstance(value, float):
            return _SPECS if value == _SPECS else float(value)
        try:
            return float(value)
        except ValueError:
            self.fail(
                f"found {value!r}; expected a number, or nothing: PACKAGE stands before --delta",
                param,
                ctx,
            )


@click.command("verify", epilog="Example: ingot verify digits.ingot --trust-code")
@click.argument("package", type=click.Path())
@click.option(
    "--golden/--no-golden",
    default=True,
    show_default=True,
    help="Run the golden data, in a fresh process.",
)
@click.option(
    "--delta",
    type=_Delta(),
    is_flag=False,
    flag_value=_SPECS,
    default=None,
    metavar="[X]",
    help="Measure again that the metric of --spec drops by at most X; alone: as SPEC says.",
)
@click.option(
    "--spec",
    type=click.Path(path_type=Path),
    metavar="SPEC",
    help="Data, evaluation and the model that was given, for --delta.",
)
@click.option("--eval-split", metavar="S", help="In place of evaluation.eval_split of SPEC.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure this file in place of the network of SPEC.",
)
@set_option
@trust_options
@common_options
def command(
    settings: Settings,
    package: str,
    golden: bool,
    delta: float | str | None,
    spec: Path | None,
    eval_split: str | None,
    reference: Path | None,
    overrides: tuple[str, ...],
    trust_code: bool,
    ignore_lock: bool,
) -> int:
    """Check PACKAGE: its archive, configuration, layout, hashes and golden data.

    With --delta and --spec, its metric is measured once more, too, beside the model that was given;
    then PACKAGE may also be a model file, of which that is all that is checked.

    Exits with 4 when a check fails, 5 when the archive is malformed or its code is not trusted, 6
    when the framework that would run the golden data is missing.
    """
    from ..commands.verify import verify
    from .console import hash_progress, print_checks

    if delta is not None and spec is None:
        raise click.UsageError("found --delta without --spec; expected both")
    if delta is None and (spec or eval_split or reference or overrides):
        raise click.UsageError(
            "found --spec, --eval-split, --reference or --set without --delta; expected it, too"
        )
    with hash_progress(settings) as progress:
        result = verify(
            package,
            golden=golden,
            trust_code=trust_code,
            ignore_lock=ignore_lock,
            spec=spec,
            delta=delta if isinstance(delta, float) else None,
            eval_split=eval_split,
            reference=reference,
            overrides=overrides,
            progress=progress,
        )
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_checks(result)
    return result.exit_code
