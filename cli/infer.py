"""``ingot infer``."""

from __future__ import annotations

from typing import Any

import click

from .infer_files import files_options, is_about_samples, run_samples
from .options import Settings, common_options, force_option, isolation_options, trust_options


@click.command(
    "infer",
    epilog="Examples: ingot infer add.ingot -i x='[1, 2]' -i y=@y.json -o out.npz;"
    " ingot infer shapes.yaml --files *.png --display pictures",
)
@click.argument("model", type=click.Path())
@files_options
@click.option(
    "-i",
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=VALUE",
    help="An input: a .npy file, @file.json, or numbers, strings, nested lists. May repeat.",
)
@click.option(
    "--inputs", "inputs_file", metavar="FILE", help="A .npz or .json of all inputs; - is stdin."
)
@click.option(
    "-o", "result_file", metavar="FILE", help="Write outputs to a .npz or .json; - is stdout."
)
@click.option("--output", "outputs", multiple=True, metavar="NAME", help="Only this. May repeat.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Stream --inputs in slices of this many rows; samples of --files at once.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of one operator.")
@click.option("--device", default="cpu", show_default=True, help="cpu, gpu or gpu:N.")
@click.option("--repeat", type=click.IntRange(1), metavar="N", help="Time N calls.")
@click.option(
    "--warmup",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Calls before the timed ones.",
)
@click.option("--no-check", is_flag=True, help="Skip the checks of names, types and shapes.")
@isolation_options
@trust_options
@force_option
@common_options
def command(
    settings: Settings,
    model: str,
    inputs: tuple[str, ...],
    inputs_file: str | None,
    result_file: str | None,
    outputs: tuple[str, ...],
    batch_size: int | None,
    threads: int | None,
    device: str,
    repeat: int | None,
    warmup: int,
    no_check: bool,
    trust_code: bool,
    ignore_lock: bool,
    force: bool,
    isolation: dict[str, Any],
    samples: dict[str, Any],
) -> None:
    """Run MODEL on inputs and print, or write, its outputs.

    MODEL is a package (zip or directory), a bare ONNX, TorchScript or .keras file, a SavedModel, or
    a spec. With --files, a spec that says how it was trained answers about images or texts.
    """
    from ..commands.infer import infer
    from ..commands.tensor_io import STANDARD_STREAM, encode_outputs

    if result_file == STANDARD_STREAM and settings.json:
        raise click.UsageError("-o - and --json both want standard output")
    of_arrays = {
        "-i": inputs,
        "--inputs": inputs_file,
        "--output": outputs,
        "--repeat": repeat,
        "--warmup": warmup,
        "--no-check": no_check,
    }
    if is_about_samples(model, samples, of_arrays):
        run_samples(
            settings,
            model,
            samples,
            result_file,
            batch_size=batch_size,
            threads=threads,
            device=device,
            trust_code=trust_code,
            ignore_lock=ignore_lock,
            force=force,
            isolation=isolation,
        )
        return
    result = infer(
        model,
        inputs,
        inputs_file=inputs_file,
        output=result_file,
        outputs=outputs,
        batch_size=batch_size,
        threads=threads,
        device=device,
        repeat=repeat,
        warmup=warmup,
        check=not no_check,
        trust_code=trust_code,
        ignore_lock=ignore_lock,
        force=force,
        **isolation,
    )
    if settings.json:
        settings.print_json(result.to_dict())
        return
    if result_file == STANDARD_STREAM:
        click.echo(encode_outputs(result.outputs, ".json").decode(), nl=False)
    from .console import print_infer

    print_infer(result, to_stdout=result_file != STANDARD_STREAM)
