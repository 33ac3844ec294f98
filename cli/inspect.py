"""``ingot inspect``."""

from __future__ import annotations

import click

from .options import Settings, common_options, printable


@click.command("inspect", epilog="Example: ingot inspect digits.ingot --json | jq .inputs")
@click.argument("model", type=click.Path())
@click.option("--requirements", is_flag=True, help="Print the package's requirements lock only.")
@common_options
def command(settings: Settings, model: str, requirements: bool) -> None:
    """Show what is inside MODEL: specs, sizes, hashes, golden data, provenance.

    MODEL is a package, a spec, or a bare model file. Nothing of a package is run.
    """
    from ..commands import inspect

    if requirements:
        lock = inspect.requirements(model)
        if settings.json:
            settings.print_json({"requirements": lock.splitlines()})
        else:
            click.echo("".join(f"{printable(line)}\n" for line in lock.splitlines()), nl=False)
        return
    description = inspect.inspect(model)
    if settings.json:
        settings.print_json(description)
        return
    from .console import print_description

    print_description(description)
