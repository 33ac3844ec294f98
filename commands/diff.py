"""``diff``: compare two models on the same inputs, layer by layer where layers can be matched."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError
from ..specs import TensorSpec
from .models import NamedModel, named_model, tree_sha256, tree_size

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.layers import LayerDifference, Traced

    Arrays = Mapping[str, np.ndarray[Any, Any]]

CHECK_FAILED = 4
_RUNS = 20


@dataclass(frozen=True)
class DiffedModel:
    """One of the two models.

    Attributes:
        label: what the user called it.
        framework: what runs it.
        size_bytes: of its file with the data beside it, or of its weights; None for code alone.
        sha256: of the same; None likewise.
        latency_ms: median of warm runs with one thread.
    """

    label: str
    framework: str
    size_bytes: int | None
    sha256: str | None
    latency_ms: float


@dataclass(frozen=True)
class DiffResult:
    """How two models differ.

    Attributes:
        first: the first model, which counts as right.
        second: the second.
        inputs: what they were run on: ``given``, ``golden`` or ``random``.
        outputs: one entry an output of the first.
        layers: one entry a layer that both have, in order; empty where they cannot be told.
        divergence: the first layer whose difference exceeds the tolerance, or None.
        tolerance: largest permitted difference, relative to the largest value of an output.
    """

    first: DiffedModel
    second: DiffedModel
    inputs: str
    outputs: tuple[LayerDifference, ...]
    layers: tuple[LayerDifference, ...]
    divergence: LayerDifference | None
    tolerance: float

    @property
    def equal(self) -> bool:
        """Whether all outputs agree within the tolerance."""
        return all(entry.relative <= self.tolerance for entry in self.outputs)

    @property
    def exit_code(self) -> int:
        """0 when the outputs agree, else 4."""
        return 0 if self.equal else CHECK_FAILED

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "equal": self.equal,
            "tolerance": self.tolerance,
            "inputs": self.inputs,
            "first": vars(self.first),
            "second": vars(self.second),
            "outputs": [entry.to_dict() for entry in self.outputs],
            "layers": [entry.to_dict() for entry in self.layers],
            "divergence": None if self.divergence is None else self.divergence.to_dict(),
        }


def diff(
    first: str | Path,
    second: str | Path,
    *,
    inputs: str | Path | None = None,
    batch: int = 2,
    seed: int = 0,
    tolerance: float = 1e-3,
    layers: bool = True,
    trust_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> DiffResult:
    """Run two models on the same inputs, each in a fresh process, and compare what they return.

    Args:
        first: a spec, a package or a bare model file; it counts as right.
        second: another one, which takes the same inputs: by name, else by position.
        inputs: ``.npz`` of inputs by name; None takes the golden ones of a model, else random ones.
        batch: of random inputs.
        seed: of random inputs.
        tolerance: largest permitted difference, relative to the largest value of an output.
        layers: compare layers, too.
        trust_code: a package may run code that it carries.
        progress: called with a line for each phase.

    Raises:
        UsageError: the models do not take the same inputs, or have no output in common.
        InputError: the inputs given do not fit.
        ModelError: a model cannot be read or run.
    """
    from ..runtime.layers import compare_layers, first_divergence, trace

    report = progress or (lambda line: None)
    if not tolerance >= 0:
        raise UsageError(f"--tolerance: found {tolerance}; expected 0 or more")
    with (
        named_model(first, trust_code=trust_code) as one,
        named_model(second, trust_code=trust_code) as other,
    ):
        specs = _described(one, other)
        kind, arrays = _inputs(one, other, specs, inputs, batch, seed)
        report(f"running {one.source.label} on {kind} inputs")
        expected = trace(_complete(one, specs[0]), arrays, layers=layers, runs=_RUNS)
        report(f"running {other.source.label}")
        renamed = _renamed(arrays, specs, other.source.label)
        actual = trace(_complete(other, specs[1]), renamed, layers=layers, runs=_RUNS)
        found = compare_layers(expected.layers, actual.layers)
        if layers and not found:
            report(f"no layers are compared: {_why(one, other, expected, actual)}")
        return DiffResult(
            _model(one, expected),
            _model(other, actual),
            kind,
            tuple(_outputs(expected.outputs, actual.outputs, other.source.label)),
            tuple(found),
            first_divergence(found, tolerance),
            tolerance,
        )


Specs = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def _described(one: NamedModel, other: NamedModel) -> Specs:
    """Return the inputs of both models; one that does not say them takes the other's."""
    from ..runtime.child import describe_source

    found = []
    for model in (one, other):
        said = model.source.inputs
        if said is None:
            said = tuple(describe_source(model.source).inputs)
        found.append(said)
    left, right = ([spec for spec in said if not spec.optional] for said in found)
    if len(left) != len(right):
        raise UsageError(
            f"{one.source.label} takes {_names(left)}; {other.source.label} takes {_names(right)};"
            " expected the same inputs"
        )
    if not _is_told(left) and not _is_told(right):
        raise UsageError(
            f"{one.source.label} and {other.source.label}: neither says the types and shapes of"
            " its inputs",
            hint="write a spec for one: ingot init MODEL --input NAME=TYPE[DIMS]",
        )
    if not _is_told(left):
        left = [replace(right[n], name=spec.name) for n, spec in enumerate(left)]
    if not _is_told(right):
        right = [replace(left[n], name=spec.name) for n, spec in enumerate(right)]
    return tuple(left), tuple(right)


def _is_told(specs: Sequence[TensorSpec]) -> bool:
    return all(spec.dtype is not None and spec.shape is not None for spec in specs)


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec.describe()}" for spec in specs) or "nothing"


def _complete(model: NamedModel, specs: tuple[TensorSpec, ...]) -> Any:
    source = model.source
    if source.framework in ("torchscript", "pt2") and source.inputs is None:
        source = replace(source, inputs=specs)
    return source


def _inputs(
    one: NamedModel,
    other: NamedModel,
    specs: Specs,
    file: str | Path | None,
    batch: int,
    seed: int,
) -> tuple[str, Arrays]:
    """Return inputs by the names of the first model, and where they come from."""
    from ..runtime.detect import expand
    from ..runtime.golden import read_npz, restore_dtype
    from ..runtime.random_inputs import seeded_inputs
    from ..runtime.validation import TensorChecker

    # The sizes with which a TorchScript file was traced are no more than an example.
    sides = [
        _of_any_size(side) if _is_traced(model) else side
        for model, side in zip((one, other), specs, strict=True)
    ]
    takes = _narrowed((sides[0], sides[1]))

    if file is not None:
        path = expand(file)
        if not path.is_file():
            raise InputError(f"--inputs {path}: no such file")
        read = read_npz(path, str(path))
        arrays: Any = {name: restore_dtype(a, name, specs[0]) for name, a in read.items()}
        return "given", TensorChecker(takes, "input", str(path))(arrays)
    pairs = _paired(specs)
    for model, names in ((one, {name: name for name in pairs}), (other, pairs)):
        if model.golden:
            arrays = {n: model.golden[own] for n, own in names.items() if own in model.golden}
            label = f"golden inputs of {model.source.label}"
            return "golden", TensorChecker(takes, "input", label)(_rows(arrays, takes, label))
    from ..exporters.variants import shapes_of

    shapes = shapes_of(_narrowed(specs), (), one.source.framework, {}, seed)
    return "random", seeded_inputs(shapes.inputs, shapes.sizes(batch, None), seed)


def _is_traced(model: NamedModel) -> bool:
    return model.source.framework == "torchscript" and model.source.inputs is None


def _of_any_size(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(replace(it, shape=tuple(None for _ in it.shape or ())) for it in specs)


def _rows(arrays: Arrays, takes: Sequence[TensorSpec], label: str) -> Arrays:
    """Leave as many rows as the model of the smaller, fixed batch takes."""
    cut = dict(arrays)
    for spec in takes:
        array, size = arrays.get(spec.name), (spec.shape or (None,))[0]
        if array is not None and array.ndim and isinstance(size, int) and size < len(array):
            cut[spec.name] = array[:size]
            logging.getLogger("ingot").warning(
                "%s: %s: only %d of %d rows are used", label, spec.name, size, len(array)
            )
    return cut


def _narrowed(specs: Specs) -> list[TensorSpec]:
    """Take a size that only the second model fixes."""
    pairs, by_name = _paired(specs), {spec.name: spec for spec in specs[1]}
    narrowed = []
    for spec in specs[0]:
        theirs = by_name[pairs[spec.name]].shape or ()
        ours = spec.shape or ()
        if len(ours) == len(theirs):
            shape = tuple(
                b if isinstance(b, int) and not isinstance(a, int) else a
                for a, b in zip(ours, theirs, strict=True)
            )
            spec = replace(spec, shape=shape)
        narrowed.append(spec)
    return narrowed


def _paired(specs: Specs) -> dict[str, str]:
    """Return the second model's name of each input of the first: the same, else by position."""
    names = [[spec.name for spec in side] for side in specs]
    if set(names[0]) == set(names[1]):
        return {name: name for name in names[0]}
    return dict(zip(*names, strict=True))


def _renamed(arrays: Arrays, specs: Specs, label: str) -> Arrays:
    pairs = _paired(specs)
    if any(name != other for name, other in pairs.items()):
        shown = ", ".join(f"{name} as {other}" for name, other in pairs.items())
        logging.getLogger("ingot").warning("%s: inputs by position: %s", label, shown)
    dtypes = {spec.name: spec.dtype for spec in specs[1]}
    return {
        pairs[name]: _of_precision(array, dtypes[pairs[name]], f"{label}: {pairs[name]}")
        for name, array in arrays.items()
    }


def _of_precision(array: Any, dtype: str | None, label: str) -> Any:
    """Cast floats to the type of floats that the second model takes (fp16 inputs)."""
    from ..specs.dtypes import numpy_dtype

    if dtype in (None, "string") or array.dtype.kind not in "fV":
        return array
    assert dtype is not None
    wanted = numpy_dtype(dtype)
    if wanted == array.dtype or wanted.kind not in "fV":
        return array
    logging.getLogger("ingot").warning("%s: cast from %s to %s", label, array.dtype, dtype)
    return array.astype(wanted)


def _outputs(expected: Arrays, actual: Arrays, label: str) -> list[LayerDifference]:
    from ..runtime.layers import LayerDifference

    logger = logging.getLogger("ingot")
    names = {name: name for name in expected if name in actual}
    if not names and len(expected) == len(actual):
        names = dict(zip(expected, actual, strict=True))
        shown = ", ".join(f"{name} with {other}" for name, other in names.items())
        logger.warning("%s: outputs by position: %s", label, shown)
    if not names:
        raise UsageError(
            f"{label}: no output in common: found {', '.join(actual)}; expected"
            f" {', '.join(expected)}"
        )
    for extra in sorted(set(actual) - set(names.values())):
        logger.warning("%s: output %r is not compared: the first model has none", label, extra)
    found = []
    for name in expected:
        left, other = expected[name], names.get(name)
        reason = "it does not return it"
        if other is not None:
            right = actual[other]
            reason = f"found the shape {right.shape}; expected {left.shape}"
        if other is None or left.shape != right.shape:
            logger.warning("%s: output %r: %s", label, name, reason)
            infinite = (math.inf, math.inf, None, -math.inf)
            found.append(LayerDifference(name, other or "", "output", left.shape, *infinite))
            continue
        found.append(_output(name, other, left, right))
    return found


def _output(name: str, other: str, left: Any, right: Any) -> LayerDifference:
    """Compare one output; of what is counted or named, not measured, the share that differs."""
    import numpy as np

    from ..runtime.layers import compare_arrays

    kinds = left.dtype.kind + right.dtype.kind
    is_text = any(kind in "USO" for kind in kinds)
    if is_text:
        left, right = left.astype(np.str_), right.astype(np.str_)
    same = left == right
    if is_text:
        left, right = np.ones(same.shape), same.astype(np.float64)
    found = compare_arrays(name, other, "output", left, right)
    # Integers of one byte are pixels, or quantized values.
    is_counted = all(kind in "iu" for kind in kinds) and left.dtype.itemsize > 1
    if is_text or is_counted or kinds == "bb":
        found = replace(found, relative=1 - float(np.mean(same)) if same.size else 0.0)
    return found


def _model(model: NamedModel, traced: Traced) -> DiffedModel:
    source = model.source
    place = source.weights or source.path
    return DiffedModel(
        source.label,
        source.framework,
        None if place is None else tree_size(place) + _companions_size(place, source.framework),
        None if place is None else tree_sha256(place),
        traced.latency_ms or 0.0,
    )


def _companions_size(path: Path, framework: str) -> int:
    """Return the size of the weights that an ONNX or OpenVINO file keeps in other files."""
    if framework == "openvino":
        weights = path.with_suffix(".bin")
        return weights.stat().st_size if weights.is_file() else 0
    if framework != "onnx":
        return 0
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if content.find(b"location") < 0:  # the key of every reference to another file
            return 0
    from ..runtime.child import onnx_external_data

    return sum((path.parent / name).stat().st_size for name in onnx_external_data(path))


def _why(one: NamedModel, other: NamedModel, expected: Traced, actual: Traced) -> str:
    for model, traced in ((one, expected), (other, actual)):
        if not traced.layers:
            return f"{model.source.label} ({model.source.framework}) does not tell them"
    return "none of one model has a counterpart in the other"
