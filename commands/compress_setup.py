"""What ``compress`` settles and measures before it searches: options, reference, forecast."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import SpecError, UsageError
from ..specs import ModelSpec, load_spec
from ..specs.sections import Stage
from .search_run import RESERVED
from .search_setup import check_delta, check_ways, named_spec

if TYPE_CHECKING:
    from ..optimizers.budget import Forecast
    from ..optimizers.pruning.search_parts import SearchSettings
    from ..training.problem import Problem

Progress = Callable[[str], None]
Target = Literal["size", "latency"]

_MODES: Mapping[str, Target] = {"compression": "size", "latency": "latency"}
EPOCHS = 2
"""Of training after each step, where neither option nor spec says."""


@dataclass(frozen=True)
class CompressOptions:
    """What the caller asked for; None takes what the spec says, else a default."""

    output: Path | None = None
    target: Target | None = None
    delta: float | None = None
    eval_key: str | None = None
    eval_split: str | None = None
    level: int | None = None
    deepsearch: bool | None = None
    device: str | None = None
    batch_size: int = 1
    threads: int = 1
    max_evaluations: int | None = None
    max_seconds: float | None = None
    finetune_epochs: int | None = None
    exclude: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    resume: bool = False
    fresh: bool = False
    dry_run: bool = False
    seed: int = 0
    strict: bool = False
    nproc: int = 1


@dataclass(frozen=True)
class Settled:
    """The options with those of the spec.

    Attributes:
        spec: with the metric and split that the options name.
        settings: of the search.
        epochs: of training after each step.
        max_evaluations: of models on the evaluation split.
        formats: that the result is exported to.
        given: what the caller asked for.
        overrides: changes of the spec, which it already has.
    """

    spec: ModelSpec
    settings: SearchSettings
    epochs: int
    max_evaluations: int
    formats: tuple[str, ...]
    given: CompressOptions
    overrides: tuple[str, ...] = ()


def settle(
    spec: str | Path | ModelSpec, options: CompressOptions, overrides: Sequence[str]
) -> Settled:
    """Put options and spec together, and refuse what is impossible before any work.

    Raises:
        UsageError: an option is impossible.
        SpecError: the spec is invalid, or of no PyTorch model.
        MissingDependencyError: a format needs what is not installed.
    """
    from ..exporters import check_format
    from ..frameworks.base import import_framework
    from ..optimizers.pruning.search_parts import SearchSettings
    from ..runtime.detect import detect, expand
    from ..runtime.sources import spec_label

    check_ways(options.resume, options.fresh)
    if isinstance(spec, ModelSpec):
        loaded = spec
    else:
        path = expand(spec)
        kind = detect(path)
        if kind != "spec":
            raise UsageError(
                f"{path}: found {kind}; expected a spec with data and evaluation",
                hint=f"ingot init {path} writes one",
            )
        loaded = load_spec(path, overrides)
    label = spec_label(loaded)
    if options.nproc > 1 and loaded.path is None:
        raise UsageError("--nproc: the workers read the spec; expected a file")
    if options.nproc > 1 and loaded.external_training_loop is not None:
        raise UsageError("--nproc: external_training_loop trains in one process only")
    if loaded.model.framework != "torch":
        raise SpecError(
            f"{label}: model.framework is {loaded.model.framework!r}; only 'torch' can be pruned",
            hint="'ingot quantize' takes ONNX files",
        )
    import_framework("torch_pruning", "compress")
    stage = _stage(loaded, options.target, label)
    loaded = named_spec(loaded, options.eval_key, options.eval_split, label)
    if stage.use_horovod and options.nproc == 1:
        logging.getLogger("ingot").warning(
            "%s: optimization.use_horovod: candidates train in one process; --nproc N takes more",
            label,
        )
    if any(item.mode == "quantization" for item in loaded.optimization):
        logging.getLogger("ingot").info(
            "%s: optimization names quantization, too; 'ingot optimize' does both", label
        )
    delta = stage.delta if options.delta is None else options.delta
    check_delta(delta)
    level = min(2, options.level or stage.level)
    deep = stage.deepsearch if options.deepsearch is None else options.deepsearch
    formats = options.formats or (loaded.export.format if loaded.export else None) or ("onnx",)
    formats = tuple(dict.fromkeys(formats))
    precision = loaded.export.kwargs.precision if loaded.export else "fp32"
    for name in formats:
        if name != "safetensors":
            check_format(name, "torch", precision, label)
    most = options.max_evaluations
    if most is None:
        most = (18 if level == 1 else 32) + (8 if deep else 0)
    if most < RESERVED + 3:
        raise UsageError(
            f"--max-evaluations: found {most}; expected at least {RESERVED + 3}: the reference"
            " twice, a candidate, and the result"
        )
    return Settled(
        loaded,
        SearchSettings(
            _MODES[stage.mode],
            delta,
            level,
            deep,
            options.exclude,
            loaded.evaluation.eval_split,
            options.seed,
            options.dry_run,
        ),
        _epochs(loaded, options),
        most,
        formats,
        options,
        tuple(overrides),
    )


def _stage(spec: ModelSpec, target: Target | None, label: str) -> Stage:
    """Return the stage of the spec that is a compression.

    Raises:
        UsageError: there is none, or it says that something else is minimised.
    """
    fitting = [stage for stage in spec.optimization if stage.mode in _MODES]
    if target is not None:
        mode = next(mode for mode, name in _MODES.items() if name == target)
        same = [stage for stage in fitting if stage.mode == mode]
        return same[0] if same else replace(spec.optimization[0], mode=mode)  # type: ignore[arg-type]
    if not fitting:
        raise UsageError(
            f"{label}: optimization: found {spec.optimization[0].mode!r}; expected compression or"
            " latency",
            hint="--target size, or 'ingot quantize'",
        )
    return fitting[0]


def _epochs(spec: ModelSpec, options: CompressOptions) -> int:
    if options.dry_run:
        return 1
    if options.finetune_epochs is not None:
        return options.finetune_epochs
    if spec.fine_tuner is not None and spec.fine_tuner.loop_params.epochs is not None:
        return spec.fine_tuner.loop_params.epochs
    return EPOCHS


def forecast(settled: Settled, epoch: float, evaluation: float) -> Forecast:
    """Forecast what the search takes at most, from a few training steps and one evaluation.

    Args:
        settled: the settled options.
        epoch: seconds of one epoch of training.
        evaluation: seconds of one evaluation.
    """
    from ..optimizers.budget import Forecast

    trials = settled.max_evaluations - RESERVED - 2
    seconds = trials * (settled.epochs * epoch + evaluation) + (RESERVED + 2) * evaluation
    given = settled.given.max_seconds
    return Forecast(
        settled.max_evaluations,
        trials * settled.epochs,
        seconds,
        max(600.0, 3 * seconds) if given is None else given,
    )


def epoch_seconds(problem: Problem, network: Any) -> float:
    """Return about how long an epoch of recovery takes, with a teacher beside it."""
    import torch

    from ..optimizers.pruning.modules import copy_module
    from ..optimizers.pruning.samples import calibration_batches
    from ..training.losses import loss_parts
    from ..training.runner import batch_size_of

    batches = calibration_batches(problem, problem.seed)[:4]
    student = copy_module(network).train()
    times = []
    for batch in batches:
        start = time.monotonic()
        parts = list(loss_parts(problem.loss(student, batch)).values())
        sum(parts[1:], parts[0]).backward()
        with torch.no_grad():
            problem.loss(network, batch)
        times.append((time.monotonic() - start) / max(1, batch_size_of(batch)))
    size = max(1, batch_size_of(batches[0]))
    try:
        steps = len(problem.splits["train"])  # type: ignore[arg-type]
    except TypeError:
        steps = len(batches)
    return sorted(times)[len(times) // 2] * size * steps
