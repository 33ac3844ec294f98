"""Data and evaluation of a model that comes without a spec: arrays in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError
from ..specs import ModelSpec, load_spec
from ..training.forward_pass import ForwardPass
from .models import NamedModel, named_model

if TYPE_CHECKING:
    import numpy as np

    from ..training.device import Device
    from ..training.problem import Problem

    Array = np.ndarray[Any, Any]

BATCH_SIZE = 64
"""Samples of a batch of a file of arrays."""
CALIBRATION = 256
"""Samples that activations are calibrated on, by default."""
_LEAST = 8
"""Samples without which a file cannot be divided."""


@contextmanager
def quantize_problem(
    model: str | Path | ModelSpec,
    overrides: Sequence[str],
    data: Path | None,
    calibration: int,
    device: str | None,
    strict: bool,
    seed: int,
    trust_code: bool,
) -> Iterator[tuple[Problem, NamedModel | ModelSpec]]:
    """Open a model with its data: that of its spec, or the arrays of a file.

    Args:
        model: a spec, a package or a model file.
        overrides: changes of the spec.
        data: an ``.npz`` with arrays by input name, and ``label`` where there are labels.
        calibration: samples of it to calibrate on; the rest is evaluated on.
        device: where training and evaluation run; None is a GPU where there is one.
        strict: refuse a GPU that is not there.
        seed: of everything that is random.
        trust_code: a package may run the code that it carries.

    Yields:
        the problem, and the model as ``export`` takes it.

    Raises:
        UsageError: there is no data, or two kinds of it.
        InputError: the file lacks an array, or has too few samples.
    """
    from ..runtime.detect import detect, expand
    from ..training.hardware import choose_device, set_threads
    from ..training.problem import Problem

    spec = model if isinstance(model, ModelSpec) else None
    if spec is None:
        assert not isinstance(model, ModelSpec)
        path = expand(model)
        if detect(path) == "spec":
            spec = load_spec(path, overrides)
    if spec is not None and data is None:
        kind = spec.model.framework
        set_threads(None, kind)
        yield Problem(spec, choose_device(device, strict, kind), seed), spec
        return
    with named_model(spec or model, () if spec is not None else overrides, trust_code) as named:
        framework = named.source.framework
        if data is None:
            raise UsageError(
                f"{named.source.label}: says nothing of data; expected --data FILE.npz",
                hint=f"or a spec: ingot init {model} writes one",
            )
        set_threads(None, framework)
        chosen = choose_device(device, strict, framework)
        yield _problem(named, data, calibration, chosen, seed), named.spec or named


def _problem(named: NamedModel, data: Path, calibration: int, device: Device, seed: int) -> Problem:
    from ..frameworks import LoadOptions, open_model
    from ..training.agreement import AgreementEvaluation
    from ..training.assess import evaluation_of_task, npz_loader, task_of_labels
    from ..training.data import ArrayInputter
    from ..training.problem import Problem
    from ..training.torch_forward_pass import TorchForwardPass

    path = data.expanduser()
    problem = Problem(named.spec or spec_of(named), device, seed)
    problem.source = named.source
    with_labels = named.spec is not None and _has_evaluation(named.spec)
    loaded = open_model(named.source, LoadOptions(threads=1))
    try:
        names = [tensor.name for tensor in loaded.inputs]
        whole, pattern = npz_loader(path, names, BATCH_SIZE, needs_label=with_labels)
        count = len(names)
        inputs = whole.arrays[:count]
        first, rest = _divided(path, whole.num_samples, calibration, seed)
        if len(whole.arrays) > count:
            targets: Any = whole.arrays[-1]
            if not with_labels:
                task = task_of_labels(whole.arrays, path)
                problem.evaluation = evaluation_of_task(task, TorchForwardPass(pattern))
        else:
            targets = _expected(loaded, dict(zip(names, inputs, strict=True)))
            problem.evaluation = AgreementEvaluation(float(targets.std()))
    finally:
        loaded.close()
    pattern = (*range(count), "_")
    is_plain = isinstance(vars(problem).get("evaluation"), AgreementEvaluation)
    problem.forward_pass = _Arrays(pattern) if is_plain else TorchForwardPass(pattern)
    arrays = (*inputs, targets)
    convert = None if is_plain else whole.convert
    problem.splits = {
        name: ArrayInputter([array[chosen] for array in arrays], BATCH_SIZE, convert=convert)
        for name, chosen in (("train", first), (problem.spec.evaluation.eval_split, rest))
    }
    return problem


def _has_evaluation(spec: ModelSpec) -> bool:
    return spec.evaluation.function is not None or spec.task is not None


def spec_of(named: NamedModel) -> ModelSpec:
    """Return a spec that says what a model file says, for what is asked of every spec."""
    from ..specs.model import ModelSection

    source: Any = named.source
    model = ModelSection(framework=source.framework, file=source.path)
    return ModelSpec(model=model, name=named.name, inputs=source.inputs, outputs=source.outputs)


def _divided(path: Path, count: int, calibration: int, seed: int) -> tuple[Array, Array]:
    """Divide samples, at random, into those to calibrate on and those to evaluate on."""
    import numpy as np

    if count < _LEAST:
        raise InputError(
            f"{path}: found {count} samples; expected at least {_LEAST}, to calibrate on some and"
            " evaluate on the others"
        )
    order = np.random.default_rng(seed).permutation(count)
    part = min(calibration, max(1, count // 4))
    return np.sort(order[:part]), np.sort(order[part:])


def _expected(loaded: Any, arrays: Mapping[str, Array]) -> Array:
    """Return what the model that was given answers, as what candidates have to agree with."""
    import numpy as np

    from ..training.agreement import expected_of
    from ..training.evaluation import CallableModel

    outputs = [tensor.name for tensor in loaded.outputs]
    model = CallableModel(_Infers(loaded), "the model")
    count = len(next(iter(arrays.values())))
    parts = []
    for start in range(0, count, BATCH_SIZE):
        batch = [array[start : start + BATCH_SIZE] for array in arrays.values()]
        returned = model(*batch)
        values = returned if isinstance(returned, tuple) else (returned,)
        for name, value in zip(outputs, values, strict=True):
            if not np.isfinite(value).all():
                raise InputError(
                    f"the output {name!r} of the model is not finite for samples {start} to"
                    f" {start + len(batch[0]) - 1}; expected numbers to agree with"
                )
        parts.append(values)
    whole = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(outputs)}
    return expected_of(whole)


class _Arrays(ForwardPass):
    """Arrays stay arrays: no framework is needed to compare them."""

    def to_device(self, leaf: Any, device: Any) -> Any:
        return leaf


class _Infers:
    """An adapter's model with the method of a session."""

    def __init__(self, model: Any) -> None:
        self.inputs, self.outputs = model.inputs, model.outputs
        self.infer = model.run
