"""What ``quantize`` settles before it searches: options, rules, formats."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import SpecError, UsageError
from ..specs import ModelSpec
from .quantize_problem import CALIBRATION
from .search_setup import check_delta, check_ways

if TYPE_CHECKING:
    from ..optimizers.quantization.rules import LayerRules
    from ..optimizers.quantization.trials import QuantizationSettings

Target = Literal["size", "latency"]
Bits = Literal["8", "4", "2", "mixed"]

FORMATS = ("onnx", "tflite")
EPOCHS = 2
"""Of training after which a candidate of fewer than 8 bits is measured again."""
CUSTOM_BITS: Bits = "2"
"""Bits of ``custom_compression.quantization_args``, which names none itself."""


@dataclass(frozen=True)
class QuantizeOptions:
    """What the caller asked for; None takes what the spec says, else a default."""

    output: Path | None = None
    target: Target | None = None
    delta: float | None = None
    eval_key: str | None = None
    eval_split: str | None = None
    bits: Bits | None = None
    formats: tuple[str, ...] = ()
    conv11: bool | None = None
    group_conv: bool | None = None
    skip_layers: tuple[int, ...] | None = None
    skip_layers_ratio: float | None = None
    layers: tuple[tuple[str, int], ...] = ()
    data: Path | None = None
    calibration: int | None = None
    finetune_epochs: int | None = None
    reduce_range: bool = False
    device: str | None = None
    batch_size: int = 1
    threads: int = 1
    max_evaluations: int | None = None
    max_seconds: float | None = None
    resume: bool = False
    fresh: bool = False
    dry_run: bool = False
    seed: int = 0
    strict: bool = False
    trust_code: bool = False


def check_options(options: QuantizeOptions) -> None:
    """Refuse what is impossible whatever the model is.

    Raises:
        UsageError: an option is impossible.
    """
    check_ways(options.resume, options.fresh)
    if options.calibration is not None and options.calibration < 1:
        raise UsageError(f"--calibration: found {options.calibration}; expected 1 or more")
    ratio = options.skip_layers_ratio
    if ratio is not None and not 0 <= ratio <= 1:
        raise UsageError(f"--skip-layers-ratio: found {ratio}; expected 0 to 1")
    if options.delta is not None:
        check_delta(options.delta)
    for name in options.formats:
        if name not in FORMATS:
            raise UsageError(
                f"--format: found {name!r}; expected one of {', '.join(FORMATS)}",
                hint="ingot export writes other formats, not quantized",
            )


def check_splits(spec: ModelSpec, label: str) -> None:
    """Refuse to measure on what activations are calibrated on.

    Raises:
        SpecError: a split to measure on is ``train``.
    """
    if "train" in (spec.evaluation.eval_split, spec.evaluation.confirm_split):
        raise SpecError(
            f"{label}: activations are calibrated on the split 'train'; expected another one to"
            " measure on",
            hint="--eval-split test",
        )


def settings_of(spec: ModelSpec, options: QuantizeOptions) -> QuantizationSettings:
    """Put options and spec together.

    Args:
        spec: with the metric and split that count.
        options: the caller's.
    """
    from ..optimizers.quantization.trials import QuantizationSettings

    formats = formats_of(spec, options)
    rules = rules_of(spec, options)
    low = sorted(name for name, bits in rules.layers.items() if bits == 2)
    if low and "tflite" in formats[1:]:
        logging.getLogger("ingot").warning(
            "layers %s: tflite has no 2 bits: that file gets 4, or what its operator has",
            ", ".join(low),
        )
    stages = spec.optimization
    stage = next((item for item in stages if item.mode == "quantization"), stages[0])
    target = options.target or ("latency" if stage.mode == "latency" else "size")
    return QuantizationSettings(
        target,
        stage.delta if options.delta is None else options.delta,
        rules,
        formats[0],
        options.calibration or CALIBRATION,
        _epochs(spec, options),
        options.reduce_range,
        spec.evaluation.eval_split,
        options.seed,
        options.dry_run,
    )


def formats_of(spec: ModelSpec, options: QuantizeOptions) -> tuple[str, ...]:
    """Return the formats of the result; those of the spec that hold integers, else ONNX."""
    said: tuple[str, ...] = ()
    if spec.export is not None:
        said = tuple(name for name in spec.export.format or () if name in FORMATS)
    return tuple(dict.fromkeys(options.formats or said or ("onnx",)))


def rules_of(spec: ModelSpec, options: QuantizeOptions) -> LayerRules:
    """Return what options, and the section ``custom_compression``, say of layers.

    The documented defaults of that section hold only where it is there: 2 bits; 1x1 and grouped
    convolutions, and layers that the section does not name, stay as they are.
    """
    from ..optimizers.quantization.rules import LayerRules

    section = spec.custom_compression
    args = None if section is None else section.quantization_args
    table = {} if section is None else {n: item.precision for n, item in section.layers.items()}
    bits: Any = options.bits or ("8" if args is None else CUSTOM_BITS)
    skip = options.skip_layers
    ratio = options.skip_layers_ratio
    conv11, group_conv = options.conv11, options.group_conv
    if args is not None:
        conv11 = args.quantize_conv11 if conv11 is None else conv11
        group_conv = args.quantize_group if group_conv is None else group_conv
        skip = args.skip_layers if skip is None else skip
        ratio = args.skip_layers_ratio if ratio is None else ratio
    return LayerRules(
        bits,
        True if conv11 is None else conv11,
        True if group_conv is None else group_conv,
        tuple(skip or ()),
        ratio or 0.0,
        {**table, **dict(options.layers)},
        only_named=bool(table) and args is None and options.bits is None,
        binding=args is not None and options.bits is None,
    )


def _epochs(spec: ModelSpec, options: QuantizeOptions) -> int:
    if options.finetune_epochs is not None:
        return options.finetune_epochs
    if spec.fine_tuner is not None and spec.fine_tuner.loop_params.epochs is not None:
        return spec.fine_tuner.loop_params.epochs
    return EPOCHS


def most_evaluations(layers: int, settings: QuantizationSettings, trains: bool) -> int:
    """Return how many evaluations a search has at most, where nobody says.

    For 8 bits that is 2 log2(layers) + 4; for fewer, the steps of a bisection, and those of another
    one with training.

    Args:
        layers: that can be quantized.
        settings: of the search.
        trains: candidates can be trained.
    """
    steps = 2 * math.ceil(math.log2(max(2, layers))) + 4
    if settings.bits == "8" and not settings.rules.layers:
        return steps
    return max(steps, 10) + (8 if trains else 0)


def trainings(settings: QuantizationSettings) -> int:
    """Return how often a search trains a candidate at most."""
    from ..optimizers.quantization.search import TRAININGS

    return 2 if settings.rules.binding else 2 * TRAININGS
