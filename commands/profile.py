"""``profile``: what a model computes and holds for one sample, and how long a call takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import OutputExistsError, UsageError
from ..specs import ModelSpec
from .evaluate import evaluate, warn_of_random_weights
from .models import NamedModel, named_model
from .profile_inputs import completed, profile_inputs
from .profile_result import ProfiledModel, ProfileResult, write_layers


def profile(
    model: str | Path | ModelSpec,
    *,
    compare: str | Path | ModelSpec | None = None,
    metrics: bool = True,
    csv: str | Path | None = None,
    batch_size: int = 1,
    threads: int = 1,
    runs: int = 10,
    device: str = "CPU",
    strict: bool = False,
    seed: int = 0,
    overrides: Sequence[str] = (),
    trust_code: bool = False,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ProfileResult:
    """Profile a model, each in a fresh process.

    Operations and memory are counted for one sample (where the batch of a model is fixed, for that
    many). Inputs are the golden ones, else random.

    Args:
        model: a spec, a package or a bare model file.
        compare: another one, which takes the same inputs: by name, else by position.
        metrics: measure the metric of a spec that has data and an evaluation.
        csv: write the layers to this file.
        batch_size: samples of the call that is timed.
        threads: threads of one operator.
        runs: how many calls are timed, after five to warm up.
        device: ``CPU`` or ``GPU``.
        strict: refuse a GPU that is not there and metrics of random weights, in place of a warning.
        seed: of random inputs.
        overrides: ``key.path=value`` changes of specs.
        trust_code: packages may run the code that they carry.
        force: replace ``csv``.
        progress: called with a line for each phase.

    Raises:
        UsageError: the models do not take the same inputs; a model does not say them; ``csv``
            exists, or there are no layers to write; with ``strict``, there is no GPU, or the
            weights of a spec are random initial ones, and metrics are to be measured.
        SpecError: a spec is invalid, or lacks inputs.
        ModelError: a model cannot be read or run.
    """
    from ..training.device import as_device

    for name, number in (("batch_size", batch_size), ("threads", threads), ("runs", runs)):
        if number < 1:
            raise UsageError(f"{name}: found {number}; expected 1 or more")
    where = as_device(device)
    report = progress or (lambda line: None)
    target = None if csv is None else _target(csv, force)
    changes = _changes(model, compare, overrides)
    nothing: Any = nullcontext(None)
    second = nothing if compare is None else named_model(compare, changes[1], trust_code)
    with named_model(model, changes[0], trust_code) as one, second as other:
        sides = [one] if other is None else [one, other]
        inputs = profile_inputs(sides, batch_size, seed)
        settings: Any = {
            "device": "gpu" if where == "GPU" else "cpu",
            "threads": threads,
            "runs": runs,
        }
        is_measured = metrics and any(_can_evaluate(side.spec) for side in sides)
        if strict and is_measured:
            _require_weights(sides)
        profiles = []
        for side, (specs, single, timed) in zip(sides, inputs, strict=True):
            from ..training.profile import profile_source

            report(f"profiling {side.source.label}")
            source = completed(side, specs)
            profiles.append(profile_source(source, single, timed, **settings))
            if strict and profiles[-1].device != where:
                raise UsageError(
                    f"{side.source.label}: device: found {where}, but {side.source.framework} sees"
                    " no GPU here (--strict)"
                )
        named = [it for it in (model, compare) if it is not None]
        measured: list[Mapping[str, float]] = [{} for _ in sides]
        if is_measured:
            report("evaluating")
            done = evaluate(
                *named,
                device=where,
                strict=strict,
                overrides=overrides,
                trust_code=trust_code,
            )
            measured = [entry.metrics for entry in done.entries]
    found = [
        ProfiledModel(
            side.source.label,
            _path(given, side),
            side.source.framework,
            measured[index],
            profiles[index],
            threads,
            batch_size,
        )
        for index, (given, side) in enumerate(zip(named, sides, strict=True))
    ]
    if target is not None:
        write_layers(target, found)
    return ProfileResult(found[0], found[1] if len(found) > 1 else None, target)


def _target(file: str | Path, force: bool) -> Path:
    target = Path(file).expanduser()
    if target.exists() and not force:
        raise OutputExistsError(f"{target}: exists already", hint="--force replaces it")
    if not target.parent.is_dir():
        raise UsageError(f"--csv {target}: its folder does not exist")
    return target


def _changes(
    model: str | Path | ModelSpec, compare: str | Path | ModelSpec | None, overrides: Sequence[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """Return the overrides of each model: specs get them, anything else has no keys."""
    from ..runtime.detect import detect, expand

    def is_spec(given: str | Path | ModelSpec | None) -> bool:
        return given is not None and (
            isinstance(given, ModelSpec) or detect(expand(given)) == "spec"
        )

    if not overrides or compare is None:
        return overrides, ()
    first, second = is_spec(model), is_spec(compare)
    return (overrides if first or not second else ()), (overrides if second else ())


def _path(given: str | Path | ModelSpec, side: NamedModel) -> Path | None:
    if isinstance(given, ModelSpec):
        return given.path
    from ..runtime.detect import expand

    return expand(given)


def _require_weights(sides: Sequence[NamedModel]) -> None:
    """Refuse specs with random initial weights.

    Raises:
        UsageError: one has them.
    """
    from ..training.problem import Problem

    for side in sides:
        if side.spec is not None:
            warn_of_random_weights(Problem(side.spec), strict=True)


def _can_evaluate(spec: ModelSpec | None) -> bool:
    if spec is None:
        return False
    inputter = None if spec.training is None else spec.training.inputter
    has_data = spec.data is not None or inputter is not None
    return has_data and (spec.evaluation.function is not None or spec.task is not None)
