"""``init``: write a commented spec from a model."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IngotError, ModelError, OutputExistsError, UsageError
from ..specs import TensorSpec
from ..specs.template import render_spec
from .inputs import guess_batch, parse_input, settle_inputs
from .origins import CODE, Origin, find_origin, model_section, unpack

if TYPE_CHECKING:
    from ..frameworks import ModelSource
    from .probing import Probe

STANDARD_STREAM = "-"
_SILENT = (*CODE, "torchscript")


@dataclass(frozen=True)
class InitResult:
    """A spec that was written.

    Attributes:
        path: the spec; None when it is only returned as text.
        text: what it says.
        name: the model's name.
        framework: its framework.
        inputs: the inputs.
        outputs: the outputs.
        golden: the file of golden inputs, or None.
        unpacked: the folder with the parts of a package, or None.
        warnings: what the user has to look after.
    """

    path: Path | None
    text: str
    name: str
    framework: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: Path | None
    unpacked: Path | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; paths are absolute."""
        paths = {"path": self.path, "golden": self.golden, "unpacked": self.unpacked}
        return {
            **{key: path and str(path.absolute()) for key, path in paths.items()},
            "name": self.name,
            "framework": self.framework,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "warnings": list(self.warnings),
        }


def init(
    model: str | Path,
    output: str | Path | None = None,
    *,
    inputs: Sequence[str | TensorSpec] = (),
    framework: str | None = None,
    root: str | Path | None = None,
    weights: str | Path | None = None,
    golden: bool = True,
    seed: int = 0,
    force: bool = False,
    trust_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> InitResult:
    """Write a spec that works at once: tensors found by reading and running the model.

    Args:
        model: a model file or folder, a package, or ``module:factory``.
        output: the spec to write (``.yaml``); None is ``NAME.yaml`` in the current folder, ``-``
            writes nothing and returns the text.
        inputs: ``NAME=dtype[dims]``, for what the model does not say, or says otherwise.
        framework: of code: ``torch`` (an ``nn.Module``) or ``python``.
        root: the folder of the code; the current one by default.
        weights: state of the module that a PyTorch factory returns.
        golden: also write seeded golden inputs.
        seed: of the golden inputs.
        force: replace existing outputs.
        trust_code: a package may run code that it carries.
        progress: called with a line for each phase.

    Raises:
        ModelError: the model cannot be read or run, or holds what no spec can say.
        UsageError: an input is not known and not given, or the options do not fit the model.
    """
    given = {spec.name: spec for spec in map(parse_input, inputs)}
    report = progress or (lambda line: None)
    to_stream = str(output) == STANDARD_STREAM
    root, weights = (None if path is None else Path(path) for path in (root, weights))
    origin = find_origin(str(model), framework, root, weights)
    if origin is None and to_stream:
        raise UsageError(
            f"{model}: the spec of a package names parts unpacked beside it; found -o -",
            hint="give -o FILE.yaml",
        )
    target = None if to_stream or output is None else Path(output).expanduser()
    _check_target(target)
    parent = Path.cwd() if target is None else target.absolute().parent
    with _scratch(parent if origin is None else None) as folder:
        report(f"reading {model}")
        origin = origin or unpack(str(model), Path(folder), trust_code)
        target = target or (None if to_stream else Path(f"{origin.name}.yaml"))
        name = origin.name if target is None else target.stem
        place = _Place(parent, name, target, origin.unpacked is not None, golden and target)
        place.check(force)
        found = _examine(origin, given, seed, report)
        text, warnings = _text(origin, found, place, str(model))
        arrays = found.probe.arrays if found.probe is not None and not found.doubt else None
        place.write(text, arrays, origin)
        for warning in warnings:
            logging.getLogger("ingot").warning("%s", warning)
        return InitResult(
            target,
            text,
            name,
            origin.source.framework,
            found.inputs,
            found.outputs,
            place.golden if place.has_golden and arrays is not None else None,
            place.unpacked if origin.unpacked is not None else None,
            tuple(warnings),
        )


def _scratch(parent: Path | None) -> tempfile.TemporaryDirectory[str]:
    """Make a folder for the parts of a package, beside where they will lie."""
    try:
        return tempfile.TemporaryDirectory(prefix=".ingot-init-", dir=parent)
    except OSError as error:
        raise UsageError(f"{parent}: cannot be written: {error.strerror}") from error


def _check_target(target: Path | None) -> None:
    if target is None:
        return
    if target.suffix not in (".yaml", ".yml"):
        raise UsageError(f"-o {target}: expected a name that ends in .yaml, or -")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"-o {target}: the folder {target.parent} does not exist")


@dataclass(frozen=True)
class _Place:
    """The files that are written: the spec, golden data beside it, the parts of a package."""

    folder: Path
    name: str
    spec: Path | None
    has_unpacked: bool
    has_golden: Any

    @property
    def golden(self) -> Path:
        return self.folder / f"{self.name}_golden.npz"

    @property
    def unpacked(self) -> Path:
        return self.folder / f"{self.name}_model"

    def check(self, force: bool) -> None:
        candidates = (
            (self.spec, True),
            (self.golden, self.has_golden),
            (self.unpacked, self.has_unpacked),
        )
        for path, wanted in candidates:
            if path is not None and wanted and os.path.lexists(path) and not force:
                raise OutputExistsError(f"{path}: exists already", hint="pass --force")

    def write(self, text: str, arrays: Mapping[str, Any] | None, origin: Origin) -> None:
        if self.spec is None:
            return
        from ..runtime.golden import dump_npz
        from .tensor_io import write_atomically

        if origin.unpacked is not None:
            if self.unpacked.is_dir():
                shutil.rmtree(self.unpacked)
            os.replace(origin.unpacked, self.unpacked)
        if self.has_golden and arrays is not None:
            write_atomically(self.golden, [dump_npz(arrays)])
        write_atomically(self.spec, [text.encode()])


@dataclass(frozen=True)
class _Found:
    """What is known of a model: ``doubt`` says why there can be no golden data."""

    source: ModelSource
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probe: Probe | None = None
    doubt: str | None = None


def _examine(
    origin: Origin, given: Mapping[str, TensorSpec], seed: int, report: Callable[[str], None]
) -> _Found:
    from ..runtime.child import describe_source
    from .probing import probe

    source = origin.source
    if origin.unpacked is not None:
        said, outputs, mapping = source.inputs or (), source.outputs or (), None
    else:
        signature = describe_source(source)
        said, outputs, mapping = signature.inputs, signature.outputs, signature.node_name_mapping
    inputs = settle_inputs(source, said, given)
    if mapping is not None:
        names = {spec.name for spec in (*inputs, *outputs)}
        tensors = {name: node for name, node in mapping.items() if name in names}
        source = replace(source, node_name_mapping=tensors, outputs=outputs)
    report(f"running it on random inputs: {', '.join(spec.name for spec in inputs) or 'none'}")
    silent = source.framework in _SILENT and origin.unpacked is None
    attempts = guess_batch(inputs, given, silent)
    for attempt in attempts:
        ready = replace(source, inputs=attempt)
        try:
            result = probe(ready, outputs, seed)
        except ModelError as error:
            if attempt is not attempts[-1]:
                continue
            known = outputs and all(spec.dtype and spec.shape is not None for spec in outputs)
            if silent or not known:
                raise ModelError(
                    error.message, hint=error.hint or "give other inputs: --input NAME=dtype[dims]"
                ) from error
            return _Found(ready, attempt, outputs, None, f"random inputs: {error.message}")
        if result.partial is not None and attempt is not attempts[-1]:
            continue
        if result.partial is not None and silent:
            raise ModelError(
                f"{source.label}: the sizes of its inputs are not free: {result.partial}",
                hint="give numbers for them: --input NAME=dtype[dims]",
            )
        return _Found(ready, attempt, result.outputs, result, _doubt(ready, result))
    raise AssertionError


def _doubt(source: ModelSource, result: Probe) -> str | None:
    """Say why the outputs of a run cannot be golden data, or None when they can."""
    from ..runtime.child import run_source
    from ..runtime.golden import compare, refuse_nan

    try:
        refuse_nan(result.results, source.label)
        if source.framework not in CODE:
            return None
        again = run_source(replace(source, outputs=result.outputs), result.arrays).arrays
    except IngotError as error:
        return error.message
    if not compare(result.results, again):
        return None
    hint = "" if source.weights is not None else "; random weights? name a file in model.weights"
    return f"two runs on the same inputs differ{hint if source.framework == 'torch' else ''}"


def _text(origin: Origin, found: _Found, place: _Place, model: str) -> tuple[str, list[str]]:
    from ..specs import ModelSpec
    from ..specs.yaml_text import parse_yaml

    section = model_section(origin, found.source, place.unpacked, place.folder)
    warnings, notes, todo = [], [], None
    if "weights" not in section and found.source.framework == "torch":
        notes.append(
            "weights: FILE, safetensors or a weights-only checkpoint, loads a trained state."
        )
    root = found.source.code_root
    if root is not None and place.folder != root and place.folder.is_relative_to(root):
        notes.append("A package of it has to be written outside of the code's folder: -o.")
        warnings.append(f"packages of this spec have to be written outside of {root} (-o)")
    if found.probe is not None and found.probe.partial is not None:
        warnings.append(f"{model}: not all sizes of its inputs are free: {found.probe.partial}")
    if found.doubt is not None and place.has_golden:
        todo = f"there is no golden data yet: {found.doubt}"
        warnings.append(f"{model}: no golden data, marked TODO in the spec: {found.doubt}")
    text = render_spec(
        place.name,
        model if origin.source.entrypoint else Path(model).name,
        section,
        found.inputs,
        found.outputs,
        place.golden.name,
        has_golden=bool(place.has_golden) and found.doubt is None,
        notes=notes,
        todo=todo,
    )
    ModelSpec.from_dict(parse_yaml(text)[0], place.folder, check_files=False)  # type: ignore[arg-type]
    return text, warnings
