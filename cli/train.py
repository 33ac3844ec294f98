"""``ingot train``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Settings, common_options, set_option


@click.command("train", epilog="Example: ingot train digits.yaml -o run --epochs 10")
@click.argument("spec", type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the run; training.model_dir, or one in INGOT_HOME by default.",
)
@click.option("--epochs", type=click.IntRange(min=0), help="In place of full_trainer.epochs.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the folder.")
@click.option("--fresh", is_flag=True, help="Remove the earlier run in the folder, and start over.")
@click.option(
    "--device",
    type=click.Choice(["CPU", "GPU"], case_sensitive=False),
    help="Where to train; a GPU where there is one by default.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of everything that is random."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of one operator.")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes (PyTorch), or devices of one (Keras), that train together on this machine.",
)
@click.option("--strict", is_flag=True, help="Refuse --device GPU where there is none.")
@set_option
@common_options
def command(
    settings: Settings,
    spec: str,
    output: Path | None,
    epochs: int | None,
    resume: bool,
    fresh: bool,
    device: str | None,
    seed: int,
    threads: int | None,
    nproc: int,
    strict: bool,
    overrides: tuple[str, ...],
) -> int:
    """Train the network of SPEC, from initial weights or training.pretrained.

    The run's folder gets checkpoints, the weights (weights.safetensors), the best of them
    (best.safetensors) and the result (train.json). A run that was killed goes on with --resume, and
    ends with the weights of one that was not. Exits with 1 when the loss is NaN.

    Under torchrun, and with --nproc, each process (of Keras: each device) trains on its part of the
    data.
    """
    from ..commands.train import train
    from ..commands.train_workers import run_workers, tell_launcher, trains_in_processes
    from .console_train import print_train, train_progress

    if nproc > 1 and trains_in_processes(spec, overrides):
        flags = {"--resume": resume, "--fresh": fresh, "--strict": strict, "--json": settings.json}
        values = {
            "--output": output,
            "--epochs": epochs,
            "--device": device,
            "--seed": seed,
            "--threads": threads,
            "--log-file": settings.log_file,
        }
        arguments = ["train", spec, *(name for name, given in flags.items() if given)]
        for name, value in values.items():
            arguments += [] if value is None else [f"{name}={value}"]
        arguments += [f"--set={override}" for override in overrides]
        arguments += ["--quiet"] if settings.verbosity < 0 else ["--verbose"] * settings.verbosity
        run_workers(arguments, nproc)
        return 0
    try:
        with train_progress(settings) as progress:
            result = train(
                spec,
                output,
                epochs=epochs,
                resume=resume,
                fresh=fresh,
                device=device,
                seed=seed,
                threads=threads,
                overrides=overrides,
                strict=strict,
                devices=nproc,
                progress=progress,
            )
    except Exception as error:
        code = tell_launcher(error)
        if code is None:
            raise
        return code
    if result.rank:
        return 0
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_train(result)
    return 0
