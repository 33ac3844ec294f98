"""``ingot profile``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Settings, common_options, force_option, set_option, trust_code_option


@click.command("profile", epilog="Example: ingot profile digits.yaml --compare digits.onnx")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL|SPEC")
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Profile this one, too, and say what is gained.",
)
@click.option("--layers", is_flag=True, help="Show every layer.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the layers to this file.",
)
@click.option(
    "--metrics/--no-metrics",
    default=True,
    show_default=True,
    help="Measure the metric of a spec that has data and an evaluation.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Samples of the call that is timed.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Of one operator."
)
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Timed calls, after 5 to warm up.",
)
@click.option(
    "--device",
    type=click.Choice(["CPU", "GPU"], case_sensitive=False),
    default="CPU",
    show_default=True,
    help="Where to run.",
)
@click.option(
    "--strict", is_flag=True, help="Refuse random weights, and --device GPU where there is none."
)
@force_option
@set_option
@trust_code_option
@common_options
def command(
    settings: Settings,
    model: Path,
    compare: Path | None,
    layers: bool,
    csv_file: Path | None,
    metrics: bool,
    batch_size: int,
    threads: int,
    runs: int,
    device: str,
    strict: bool,
    force: bool,
    overrides: tuple[str, ...],
    trust_code: bool,
) -> None:
    """Say what MODEL computes and holds for one sample, and how long a call takes.

    MODEL is a spec, a package or a model file. Size, operations (MACs), parameters and memory are
    counted for one sample; the execution time is the median of calls in a fresh process.
    """
    from ..commands.profile import profile
    from .console_profile import print_profile

    result = profile(
        model,
        compare=compare,
        metrics=metrics,
        csv=csv_file,
        batch_size=batch_size,
        threads=threads,
        runs=runs,
        device=device,
        strict=strict,
        overrides=overrides,
        trust_code=trust_code,
        force=force,
        progress=settings.progress,
    )
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_profile(result, layers)
