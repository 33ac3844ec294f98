"""``ingot diff``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Settings, common_options, trust_code_option


@click.command(
    "diff", epilog="Example: ingot diff digits.yaml exported/digitsfp16_dynamic_shape.onnx"
)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.npz",
    help="Inputs by name.  [default: golden inputs of a model, else random ones]",
)
@click.option(
    "--batch", type=click.IntRange(1), default=2, show_default=True, help="Of random ones."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random ones."
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-3,
    show_default=True,
    metavar="X",
    help="Largest difference, relative to the largest value of an output.",
)
@click.option("--layers/--no-layers", default=True, show_default=True, help="Compare layers, too.")
@click.option(
    "--all", "show_all", is_flag=True, help="Show every layer, not only 20 that tell most."
)
@trust_code_option
@common_options
def command(
    settings: Settings,
    first: Path,
    second: Path,
    inputs: Path | None,
    batch: int,
    seed: int,
    tolerance: float,
    layers: bool,
    show_all: bool,
    trust_code: bool,
) -> int:
    """Compare two models on the same inputs: FIRST, which counts as right, and SECOND.

    Both may be a spec, a package or a model file of any format. Outputs are compared, and layers
    where they can be matched; the first layer at which the models part is named. Exits with 4 when
    an output differs by more than the tolerance.
    """
    from ..commands.diff import diff
    from .console_diff import print_diff

    result = diff(
        first,
        second,
        inputs=inputs,
        batch=batch,
        seed=seed,
        tolerance=tolerance,
        layers=layers,
        trust_code=trust_code,
        progress=settings.progress,
    )
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_diff(result, show_all)
    return result.exit_code
