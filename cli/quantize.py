"""``ingot quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import Settings, common_options, set_option
from .search_options import (
    cap_options,
    deliver,
    goal_options,
    place_options,
    run_options,
    searching,
)


class LayerBits(click.ParamType):  # type: ignore[type-arg]
    """``NAME=BITS``: a layer and the bits of its weights."""

    name = "name=bits"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return the pair."""
        if isinstance(value, tuple):
            return value
        name, found, bits = str(value).rpartition("=")
        if not found or not name or not bits.isdecimal():
            self.fail(f"found {value!r}; expected NAME=BITS, as conv1=8", param, ctx)
        return name, int(bits)


class Indices(click.ParamType):  # type: ignore[type-arg]
    """``8,9,10``: indices of layers."""

    name = "indices"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the indices."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() for part in parts):
            self.fail(f"found {value!r}; expected indices, as 8,9,10", param, ctx)
        return tuple(int(part) for part in parts)


@click.command(
    "quantize",
    epilog="Example: ingot quantize model.onnx --data samples.npz --delta 0.5 -o run",
)
@click.argument("model", metavar="SPEC|PACKAGE|MODEL", type=click.Path(path_type=Path))
@goal_options
@click.option(
    "--bits",
    type=click.Choice(["8", "4", "2", "mixed"]),
    help="Of weights; fewer where that keeps delta with mixed."
    "  [default: 8; 2 with quantization_args in the spec]",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(["onnx", "tflite"]),
    multiple=True,
    help="Of the result; the first is measured. May repeat.  [default: the spec's, else onnx]",
)
@click.option("--conv11/--no-conv11", default=None, help="Quantize 1x1 convolutions.")
@click.option("--group-conv/--no-group-conv", default=None, help="Quantize grouped convolutions.")
@click.option(
    "--skip-layers", type=Indices(), metavar="I,J,...", help="Layers to leave, by their index."
)
@click.option(
    "--skip-layers-ratio", type=float, metavar="R", help="Share of first layers to leave."
)
@click.option(
    "--layer",
    "layers",
    type=LayerBits(),
    multiple=True,
    metavar="NAME=BITS",
    help="Bits of one layer (2, 4, 8, 16 or 32). May repeat.",
)
@click.option("--list-layers", is_flag=True, help="Print the layers with their bits, and end.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Arrays by input name, and label where there are labels, in place of the spec's data.",
)
@click.option(
    "--calibration",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples to calibrate activations on.  [default: 256]",
)
@click.option("--reduce-range", is_flag=True, help="Weights of 7 bits, for x86 without VNNI.")
@place_options
@cap_options("2 log2(layers) + 4; more below 8 bits")
@click.option(
    "--finetune-epochs",
    type=click.IntRange(min=0),
    help="Training of candidates below 8 bits.  [default: fine_tuner of the spec, else 2]",
)
@run_options
@click.option("--trust-code", is_flag=True, help="Run the code that a package carries.")
@set_option
@common_options
def command(
    settings: Settings,
    model: Path,
    depfile: Path | None,
    list_layers: bool,
    overrides: tuple[str, ...],
    **options: Any,
) -> int:
    """Quantize a model to as few bits as --delta allows: to ONNX or TFLite.

    Layers that cost too much go back to a higher precision. The metric is measured on the file
    that ships, in its runtime. A model file without a spec takes --data; without labels the metric
    is agreement with the model itself.

    Exits with 0 when the drop is within delta, with 3 when it is not (the best that was found is
    saved), and with 130 when it was interrupted.
    """
    from ..commands.quantize import quantize
    from ..commands.quantize_layers import list_layers as table_of
    from ..commands.quantize_setup import QuantizeOptions
    from ..commands.search_outputs import check_depfile
    from .console_search import print_layers

    wanted = QuantizeOptions(**options)
    if list_layers:
        table = table_of(model, wanted, overrides=overrides, progress=settings.progress)
        if settings.json:
            settings.print_json(table.to_dict())
        else:
            print_layers(table.to_dict())
        return 0
    if depfile is not None:
        check_depfile(depfile)
    with searching(settings) as (progress, watch):
        verdict = quantize(model, wanted, overrides=overrides, progress=progress, watch=watch)
    reads = () if wanted.data is None else (wanted.data,)
    return deliver(settings, verdict, model, depfile, overrides, reads)
