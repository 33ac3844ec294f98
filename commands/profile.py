"""``profile``: what a model computes and holds for one sample, and how long a call takes."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputExistsError, UsageError
from ..specs import ModelSpec
from .models import NamedModel, named_model
from .profile_inputs import completed, profile_inputs

if TYPE_CHECKING:
    from ..training.profile import Profile

RATIOS = ("size_bytes", "macs", "parameters", "memory_bytes", "latency_ms")
"""What a comparison gives as a ratio, the first model's value by the other's."""


@dataclass(frozen=True)
class ProfiledModel:
    """One model's profile.

    Attributes:
        label: what the user called it.
        path: its file; None for a spec given in Python.
        framework: what runs it.
        metrics: number by name; empty when there is no data, or no evaluation.
        profile: what was counted and timed.
        threads: threads of one operator.
        batch_size: of the call that was timed.
    """

    label: str
    path: Path | None
    framework: str
    metrics: Mapping[str, float]
    profile: Profile
    threads: int
    batch_size: int

    def value(self, key: str) -> float | None:
        """Return one of :data:`RATIOS`; None when it cannot be told."""
        if key == "latency_ms":
            return self.profile.latency.median_ms
        found: float | None = getattr(self.profile.complexity, key)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: first the keys that a verdict has of its reference."""
        complexity, latency = self.profile.complexity, self.profile.latency
        return {
            "metrics": dict(self.metrics),
            "size_bytes": complexity.size_bytes,
            "parameters": complexity.parameters,
            "macs": complexity.macs,
            "latency_ms": latency.median_ms,
            "matrix_macs": complexity.matrix_macs,
            "memory_bytes": complexity.memory_bytes,
            "file_bytes": complexity.file_bytes,
            "latency": asdict(latency),
            "threads": self.threads,
            "batch_size": self.batch_size,
            "device": self.profile.device,
            "model": self.label,
            "path": None if self.path is None else str(self.path.absolute()),
            "framework": self.framework,
            "layers": [self._layer(layer) for layer in complexity.layers],
            "notes": list(complexity.notes),
        }

    def _layer(self, layer: Any) -> dict[str, Any]:
        shape = None if layer.output_shape is None else list(layer.output_shape)
        return {
            "name": layer.name,
            "type": layer.kind,
            "output_shape": shape,
            "parameters": layer.parameters,
            "size_bytes": layer.size_bytes,
            "macs": layer.macs,
            "matrix_macs": layer.matrix_macs,
            "share": self.share(layer.macs),
        }

    def share(self, macs: int) -> float:
        """Return the part of a layer's operations in all, 0 to 1."""
        return macs / (self.profile.complexity.macs or macs or 1)


@dataclass(frozen=True)
class ProfileResult:
    """The profile of a model, and of another one that it is compared with.

    Attributes:
        model: the model.
        other: the other one, or None.
        csv: the file of layers that was written, or None.
    """

    model: ProfiledModel
    other: ProfiledModel | None
    csv: Path | None

    @property
    def enhancements(self) -> dict[str, float | None]:
        """The model's value by the other's, by key; None when one of them cannot be told."""
        if self.other is None:
            return {}
        pairs = {key: (self.model.value(key), self.other.value(key)) for key in RATIOS}
        return {key: one / two if one and two else None for key, (one, two) in pairs.items()}

    @property
    def differences(self) -> dict[str, float]:
        """The other's metrics less the model's, by name."""
        ours, theirs = self.model.metrics, {} if self.other is None else self.other.metrics
        return {name: theirs[name] - ours[name] for name in ours if name in theirs}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        compare = None
        if self.other is not None:
            enhancements = {"metrics": self.differences, **self.enhancements}
            compare = {**self.other.to_dict(), "enhancements": enhancements}
        written = None if self.csv is None else str(self.csv.absolute())
        return {**self.model.to_dict(), "compare": compare, "csv": written}


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
        seed: of random inputs.
        overrides: ``key.path=value`` changes of specs.
        trust_code: packages may run the code that they carry.
        force: replace ``csv``.
        progress: called with a line for each phase.

    Raises:
        UsageError: the models do not take the same inputs; a model does not say them; ``csv``
            exists, or there are no layers to write.
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
        profiles = []
        for side, (specs, single, timed) in zip(sides, inputs, strict=True):
            from ..training.profile import profile_source

            report(f"profiling {side.source.label}")
            source = completed(side, specs)
            profiles.append(profile_source(source, single, timed, **settings))
        named = [it for it in (model, compare) if it is not None]
        measured = _metrics(named, sides, where, overrides, trust_code, report) if metrics else None
    found = [
        ProfiledModel(
            side.source.label,
            _path(given, side),
            side.source.framework,
            {} if measured is None else measured[index],
            profiles[index],
            threads,
            batch_size,
        )
        for index, (given, side) in enumerate(zip(named, sides, strict=True))
    ]
    if target is not None:
        _write_csv(target, found)
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


def _metrics(
    named: Sequence[str | Path | ModelSpec],
    sides: Sequence[NamedModel],
    device: str,
    overrides: Sequence[str],
    trust_code: bool,
    report: Callable[[str], None],
) -> list[Mapping[str, float]] | None:
    """Measure the models as ``evaluate`` does; None without data or evaluation."""
    if not any(side.spec is not None and _can_evaluate(side.spec) for side in sides):
        return None
    from .evaluate import evaluate

    report("evaluating")
    found = evaluate(*named, device=device, overrides=overrides, trust_code=trust_code)
    return [entry.metrics for entry in found.entries]


def _can_evaluate(spec: ModelSpec) -> bool:
    inputter = None if spec.training is None else spec.training.inputter
    has_data = spec.data is not None or inputter is not None
    return has_data and (spec.evaluation.function is not None or spec.task is not None)


def _write_csv(target: Path, found: Sequence[ProfiledModel]) -> None:
    rows = [
        {"model": model.label, **layer} for model in found for layer in model.to_dict()["layers"]
    ]
    if not rows:
        raise UsageError(
            f"{found[0].label}: its layers cannot be told ({found[0].framework}); nothing is"
            " written to --csv"
        )
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            for row in rows:
                shape = row["output_shape"]
                text = "" if shape is None else "x".join(map(str, shape))
                writer.writerow({**row, "output_shape": text, "share": f"{row['share']:.6f}"})
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
