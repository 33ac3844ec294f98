"""``ingot package``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Settings, common_options, force_option, set_option


@click.command(
    "package",
    epilog="Example: ingot package digits.yaml -o digits.ingot --set test.rtol=1e-3",
)
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The package to write.  [default: NAME.ingot]",
)
@click.option("--dir", "as_directory", is_flag=True, help="Write a directory instead of a zip.")
@click.option("--store", is_flag=True, help="Compress nothing (weights never are).")
@set_option
@force_option
@common_options
def command(
    settings: Settings,
    spec: Path,
    output: Path | None,
    as_directory: bool,
    store: bool,
    overrides: tuple[str, ...],
    force: bool,
) -> None:
    """Turn the model of SPEC into a verified package.

    SPEC is a spec file (YAML, JSON or TOML), a Ludwig model folder, or a bare ONNX, .keras or
    SavedModel. The finished package is run on its golden data in a fresh process before it is put
    in place; when its outputs differ, nothing is written and the exit code is 4.
    """
    from ..commands.package import package

    result = package(
        spec,
        output,
        overrides=overrides,
        as_directory=as_directory,
        store=store,
        force=force,
        progress=settings.progress,
    )
    if settings.json:
        settings.print_json(result.to_dict())
        return
    from .console import print_package

    print_package(result)
