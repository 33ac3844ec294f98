"""``ingot evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Settings, common_options, force_option, set_option, trust_code_option


@click.command("evaluate", epilog="Example: ingot evaluate digits.yaml digits.onnx")
@click.argument("models", type=click.Path(), nargs=-1, required=True, metavar="MODEL...")
@click.option("--split", help="In place of evaluation.eval_split.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Measure on these arrays: inputs by name, and label.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Samples a batch of --data (128 by default).",
)
@click.option(
    "--per-sample",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Write the results of single samples to this file.",
)
@click.option(
    "--device",
    type=click.Choice(["CPU", "GPU"], case_sensitive=False),
    help="Where to run; a GPU where there is one by default.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator.")
@click.option(
    "--strict", is_flag=True, help="Refuse random weights, and --device GPU where there is none."
)
@force_option
@set_option
@trust_code_option
@common_options
def command(
    settings: Settings,
    models: tuple[str, ...],
    split: str | None,
    data: Path | None,
    batch_size: int | None,
    per_sample: Path | None,
    device: str | None,
    threads: int | None,
    strict: bool,
    force: bool,
    overrides: tuple[str, ...],
    trust_code: bool,
) -> None:
    """Measure each MODEL (a spec, a package or a model file), side by side.

    A spec is measured on its own data. Packages and model files take data and evaluation from the
    first spec among the models, or the data from --data.
    """
    from ..commands.evaluate import evaluate
    from .console_train import print_evaluation

    result = evaluate(
        *models,
        split=split,
        data=data,
        batch_size=batch_size,
        per_sample=per_sample,
        force=force,
        device=device,
        strict=strict,
        threads=threads,
        trust_code=trust_code,
        overrides=overrides,
    )
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_evaluation(result)
