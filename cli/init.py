"""``ingot init``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Settings, common_options, force_option, trust_code_option


@click.command("init", epilog="Example: ingot init net:build --input 'x=float32[batch,3,32,32]'")
@click.argument("model")
@click.option(
    "-o", "--output", metavar="SPEC", help="The spec to write; - is stdout.  [default: NAME.yaml]"
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=TYPE[DIMS]",
    help="Type and shape of an input: x=float32[batch,3,32,32]; ? is any size. May repeat.",
)
@click.option(
    "--framework",
    type=click.Choice(["torch", "python"]),
    help="What module:factory returns: an nn.Module, or a callable.  [default: torch]",
)
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder of the code of module:factory.  [default: the current one]",
)
@click.option(
    "--weights",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="State of the nn.Module: safetensors, or a weights-only checkpoint.",
)
@click.option("--no-golden", is_flag=True, help="Write no golden data.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the inputs.")
@trust_code_option
@force_option
@common_options
def command(
    settings: Settings,
    model: str,
    output: str | None,
    inputs: tuple[str, ...],
    framework: str | None,
    root: Path | None,
    weights: Path | None,
    no_golden: bool,
    seed: int,
    trust_code: bool,
    force: bool,
) -> None:
    """Write a commented spec from MODEL, and golden data beside it.

    MODEL is an ONNX, .keras, TorchScript or GraphDef (.pb) file, a SavedModel or Ludwig folder, a
    package, or module:factory: Python code that returns an nn.Module. It is run on random inputs of
    two batch sizes to find its outputs.
    """
    from ..commands.init import STANDARD_STREAM, init

    if settings.json and output == STANDARD_STREAM:
        raise click.UsageError("-o - and --json both write to stdout; give one of them")
    result = init(
        model,
        output,
        inputs=inputs,
        framework=framework,
        root=root,
        weights=weights,
        golden=not no_golden,
        seed=seed,
        force=force,
        trust_code=trust_code,
        progress=settings.progress,
    )
    if settings.json:
        settings.print_json(result.to_dict())
    elif result.path is None:
        click.echo(result.text, nl=False)
    else:
        for path in (result.path, result.golden, result.unpacked):
            if path is not None:
                shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
                click.echo(str(shown))
