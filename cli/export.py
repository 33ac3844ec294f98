"""``ingot export``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from .options import Settings, common_options, force_option, set_option, trust_code_option

_FORMATS = "onnx, jit, pt2, savedmodel, tflite, openvino, safetensors"


class _Resolution(click.ParamType):  # type: ignore[type-arg]
    name = "HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})", str(value))
        if match is None:
            self.fail(f"found {value!r}; expected height and width, as 224x320", param, ctx)
        return int(match.group(1)), int(match.group(2))


@click.command(
    "export",
    epilog="Example: ingot export digits.yaml --format onnx --format jit -o exported",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="FORMAT",
    help=f"One of {_FORMATS}. May repeat.  [default: export.format of the spec]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder to write to.  [default: the current one]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Type of the weights.  [default: fp32]",
)
@click.option(
    "--resolution",
    "resolutions",
    type=_Resolution(),
    metavar="HxW",
    multiple=True,
    help="Also write a file fixed to this image size. May repeat.  [default: the data's]",
)
@click.option(
    "--dynamic/--fixed",
    "dynamic",
    default=None,
    help="Only the dynamic-shape file; or only fixed-shape ones, with a batch of 1."
    "  [default: both]",
)
@click.option("--opset", type=click.IntRange(7, 26), metavar="N", help="Of ONNX files.")
@click.option(
    "--bn-fusion/--no-bn-fusion", default=None, help="Fold BatchNorm first.  [default: fold]"
)
@click.option("--fp16-io", is_flag=True, help="Inputs and outputs of fp16 files are fp16, too.")
@click.option(
    "--tolerance",
    type=float,
    metavar="X",
    help="Largest difference from the source, relative to the largest value of an output."
    "  [default: 1e-4 for fp32, 1e-2 for fp16, 5e-2 for bf16]",
)
@click.option("--name", metavar="STEM", help="Start of the files' names.  [default: the model's]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the inputs.")
@click.option(
    "--evaluate/--no-evaluate",
    default=True,
    show_default=True,
    help="Measure the metric of the spec on every file, too, where it has data.",
)
@set_option
@trust_code_option
@force_option
@common_options
def command(
    settings: Settings,
    model: Path,
    formats: tuple[str, ...],
    output: Path | None,
    precision: Any,
    resolutions: tuple[tuple[int, int], ...],
    dynamic: bool | None,
    opset: int | None,
    bn_fusion: bool | None,
    fp16_io: bool,
    tolerance: float | None,
    name: str | None,
    seed: int,
    evaluate: bool,
    overrides: tuple[str, ...],
    trust_code: bool,
    force: bool,
) -> None:
    """Write MODEL in other formats, each file proven equal to its source.

    MODEL is a spec, a package, or an ONNX, TorchScript, .keras file or SavedModel. Every file is
    run in a fresh process on golden and random inputs and compared with the source; when one
    differs, nothing is written and the exit code is 4.
    """
    from ..commands.export import export
    from .console_export import print_export

    result = export(
        model,
        formats,
        output,
        precision=precision,
        resolutions=resolutions,
        mode="both" if dynamic is None else "dynamic" if dynamic else "fixed",
        opset=opset,
        bn_fusion=bn_fusion,
        fp16_io=fp16_io,
        tolerance=tolerance,
        name=name,
        overrides=overrides,
        seed=seed,
        force=force,
        trust_code=trust_code,
        evaluate=evaluate,
        progress=settings.progress,
    )
    if settings.json:
        settings.print_json(result.to_dict())
    else:
        print_export(result)
