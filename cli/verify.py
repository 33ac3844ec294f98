"""``ingot verify``."""

from __future__ import annotations

import click

from .options import Settings, common_options, trust_options


@click.command("verify", epilog="Example: ingot verify digits.ingot --trust-code")
@click.argument("package", type=click.Path())
@click.option(
    "--golden/--no-golden",
    default=True,
    show_default=True,
    help="Run the golden data, in a fresh process.",
)
@trust_options
@common_options
def command(
    settings: Settings, package: str, golden: bool, trust_code: bool, ignore_lock: bool
) -> int:
    """Check PACKAGE: its archive, configuration, layout, hashes and golden data.

    Exits with 4 when a check fails, 5 when the archive is malformed or its code is not trusted, 6
    when the framework that would run the golden data is missing.
    """
    from ..commands.verify import verify
    from .console import hash_progress, print_checks

    with hash_progress(settings) as progress:
        result = verify(
            package,
            golden=golden,
            trust_code=trust_code,
            ignore_lock=ignore_lock,
            progress=progress,
        )
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_checks(result)
    return result.exit_code
