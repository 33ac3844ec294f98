"""``export``: write a model in other formats, each file proven equal to its source."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import CheckError, UsageError
from ..specs import ModelSpec
from .export_files import ExportOptions, deliver, refuse_existing, workspace
from .export_result import ExportResult
from .models import NamedModel, named_model

if TYPE_CHECKING:
    from ..exporters import Draft, Format, Job, Variant
    from ..exporters.parity import Parity
    from ..exporters.variants import Mode, Shapes
    from ..frameworks import Model

_REFERENCE = "reference"

LOWEST_OPSET, HIGHEST_OPSET = 7, 26
"""What converters can write, and what ONNX Runtime 1.31 can read."""

_NAMED = re.compile(r"(\d+x\d+)?(fp32|fp16|bf16)(_dynamic_shape)?$")
"""What an export has added to a name: exported again, a file gets it anew."""

Progress = Callable[[str], None]
Precision = Literal["fp32", "fp16", "bf16"]


def export(
    model: str | Path | ModelSpec | NamedModel,
    formats: str | Sequence[str] = (),
    output: str | Path | None = None,
    *,
    precision: Precision | None = None,
    resolutions: Sequence[tuple[int, int]] = (),
    mode: Mode = "both",
    opset: int | None = None,
    bn_fusion: bool | None = None,
    fp16_io: bool = False,
    tolerance: float | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    force: bool = False,
    trust_code: bool = False,
    evaluate: bool = True,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a model; every file is compared with its source in a fresh process first.

    Either all files are delivered, or none.

    Args:
        model: a spec file or a loaded spec, a package, or a bare model file; or one that is open.
        formats: names of ``exporters.FORMATS``; none takes those of the spec.
        output: the folder to write to; None takes the spec's, else the current one.
        precision: of the weights; None takes the spec's, else fp32.
        resolutions: (height, width) of fixed-shape files; none takes the spec's, else the data's.
        mode: ``both`` writes a dynamic-shape file and fixed-shape ones, ``dynamic`` the first only,
            ``fixed`` the others only, with a batch of 1.
        opset: of ONNX files; None takes the converter's default.
        bn_fusion: fold BatchNorm; None takes the spec's, else True.
        fp16_io: inputs and outputs of fp16 files are fp16, too.
        tolerance: largest permitted difference, relative to an output's largest value; None is
            ``exporters.parity.TOLERANCES`` of the precision.
        name: start of the files' names; None is the model's name.
        overrides: ``key.path=value`` changes to the spec.
        seed: of the random inputs.
        force: replace existing files.
        trust_code: a package may run code that it carries.
        evaluate: where the spec has data and an evaluation, measure its metric on every file, too.
        progress: called with a line for each phase.

    Raises:
        UsageError: an option is impossible, a format cannot be made of such a model, or a file
            exists already.
        MissingDependencyError: a converter is not installed.
        ModelError: the model cannot be loaded, run or converted.
        CheckError: a file does not compute what its source does; nothing is delivered.
    """
    from ..exporters import check_format
    from ..exporters.metrics import has_evaluation
    from ..frameworks import LoadOptions, open_model

    report = progress or _silent
    asked = (formats,) if isinstance(formats, str) else tuple(formats)
    _check_arguments(precision, mode, tolerance, name)
    with named_model(model, overrides, trust_code) as found:
        options = _settle(
            found, asked, output, precision, resolutions, mode, bn_fusion, tolerance, name, force
        )
        label = found.source.label
        _check_options(options, opset, fp16_io, label)
        entries = {
            key: check_format(key, found.source.framework, options.precision, label)
            for key in options.formats
        }
        report(f"loading {label} ({found.source.framework})")
        with _closing(open_model(found.source, LoadOptions())) as loaded:
            shapes = _shapes(found, loaded, seed)
            plans = {key: _plan(entry, shapes, options, found) for key, entry in entries.items()}
            refuse_existing(plans, entries, options, found)
            with workspace(options.output) as folder:
                from ..exporters import Job

                job = Job(
                    replace(found.source, inputs=loaded.inputs, outputs=loaded.outputs),
                    loaded,
                    options.stem,
                    folder,
                    options.precision,
                    opset,
                    options.bn_fusion,
                    fp16_io,
                    _metadata(found),
                    None if found.spec is None else found.spec.to_dict(),
                )
                checks = _checks(plans, shapes, options, job)
                made = [
                    item
                    for key, variants in plans.items()
                    for item in _export_one(key, job, variants, checks, options, report)
                ]
                measured = {}
                if evaluate and has_evaluation(found.spec):
                    report("evaluating")
                    measured = _measured(found, overrides, job, made, shapes)
                artifacts = deliver(made, measured, folder, options)
    return ExportResult(
        found.name,
        found.source.framework,
        tuple(artifacts),
        measured.get(_REFERENCE),
        tuple(job.shared.get("folded", ())),
    )


def _silent(line: str) -> None:
    return None


def _check_arguments(
    precision: str | None, mode: str, tolerance: float | None, name: str | None
) -> None:
    """Refuse impossible values, before the model is opened.

    Raises:
        UsageError: there is one.
    """
    from ..exporters.variants import Mode

    for option, value, possible in (
        ("precision", precision or "fp32", get_args(Precision)),
        ("mode", mode, get_args(Mode)),
    ):
        if value not in possible:
            raise UsageError(f"{option}: found {value!r}; expected one of {', '.join(possible)}")
    if tolerance is not None and not (tolerance >= 0 and math.isfinite(tolerance)):
        raise UsageError(f"--tolerance: found {tolerance}; expected a finite number of at least 0")
    if name is not None:
        _check_stem(name, "--name")


def _check_stem(stem: str, label: str, hint: str | None = None) -> None:
    from ..runtime.config import LONGEST_STEM, is_stem

    if not is_stem(stem):
        raise UsageError(
            f"{label}: found {reprlib.repr(stem)}; expected a name that can be a file name:"
            f" printable, without / and \\, of up to {LONGEST_STEM} bytes",
            hint=hint,
        )


def _stem(found: NamedModel) -> str:
    """Return the start of the files' names, from that of the model.

    Raises:
        UsageError: no file can be named so.
    """
    from ..runtime.config import stem_of

    stem = stem_of(_NAMED.sub("", found.name) or found.name)
    label = f"{found.source.label}: the model's name"
    _check_stem(stem, label, hint="give the files another one: --name STEM")
    return stem


def _settle(
    found: NamedModel,
    formats: tuple[str, ...],
    output: str | Path | None,
    precision: str | None,
    resolutions: Sequence[tuple[int, int]],
    mode: Mode,
    bn_fusion: bool | None,
    tolerance: float | None,
    name: str | None,
    force: bool,
) -> ExportOptions:
    from ..exporters.parity import TOLERANCES
    from ..runtime.detect import expand

    section = found.spec.export if found.spec is not None else None
    kwargs = section.kwargs if section is not None else None
    said = tuple(section.format or ()) if section is not None else ()
    chosen = tuple(dict.fromkeys(formats or said))
    if not chosen:
        from ..exporters import FORMATS

        raise UsageError(
            f"{found.source.label}: no format to export to; expected --format, one or more of"
            f" {', '.join(FORMATS)}",
            hint="or write export: {format: [onnx]} into the spec",
        )
    folder = output if output is not None else kwargs.root_path if kwargs is not None else None
    settled = precision or (kwargs.precision if kwargs is not None else "fp32")
    fusion = bn_fusion
    if fusion is None and found.spec is not None:
        fusion = found.spec.bn_fusion
    return ExportOptions(
        chosen,
        expand(folder) if folder is not None else Path(),
        settled,
        tuple(resolutions or (kwargs.resolutions if kwargs is not None else ())),
        mode,
        True if fusion is None else fusion,
        TOLERANCES[settled] if tolerance is None else tolerance,
        _stem(found) if name is None else name,
        force,
    )


def _check_options(options: ExportOptions, opset: int | None, fp16_io: bool, label: str) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: there is one.
    """
    if opset is not None and not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UsageError(
            f"{label}: --opset: found {opset}; expected {LOWEST_OPSET} to {HIGHEST_OPSET}"
        )
    if opset is not None and "onnx" not in options.formats:
        found = ", ".join(options.formats)
        raise UsageError(f"{label}: --opset goes with --format onnx; found {found}")
    if fp16_io and options.precision == "fp32":
        raise UsageError(f"{label}: --fp16-io goes with --precision fp16 or bf16; found fp32")


def _shapes(found: NamedModel, loaded: Model, seed: int) -> Shapes:
    from ..exporters.variants import shapes_of

    untold = [
        spec.name
        for spec in (*loaded.inputs, *loaded.outputs)
        if spec.dtype is None or spec.shape is None
    ]
    if untold or not loaded.outputs:
        raise UsageError(
            f"{found.source.label}: the model does not say the types and shapes of its tensors"
            + (f" ({', '.join(untold)})" if untold else ""),
            hint="write a spec with them: ingot init MODEL --input NAME=TYPE[DIMS]",
        )
    return shapes_of(loaded.inputs, loaded.outputs, found.source.framework, found.golden, seed)


def _plan(
    entry: Format, shapes: Shapes, options: ExportOptions, found: NamedModel
) -> list[Variant]:
    from ..exporters.variants import plan_variants

    static = found.source.framework in entry.static_sources
    label = found.source.label
    variants = plan_variants(shapes, options.resolutions, options.mode, label, static)
    return variants if entry.has_variants else variants[:1]


@contextmanager
def _closing(model: Model) -> Iterator[Model]:
    try:
        yield model
    finally:
        model.close()


def _metadata(found: NamedModel) -> dict[str, str]:
    return {
        "spec_name": found.name,
        "source_framework": found.source.framework,
        "source_sha256": found.sha256,
    }


def _checks(
    plans: Mapping[str, Sequence[Variant]], shapes: Shapes, options: ExportOptions, job: Job
) -> dict[Any, Any]:
    """Run the source on the inputs of every check, by the shapes of the files that need them.

    It is done first: a size that the model does not take shows before anything is converted.
    """
    from ..exporters.parity import run_source_on
    from ..exporters.variants import parity_inputs

    checks: dict[Any, Any] = {}
    for variants in plans.values():
        for variant in variants:
            if variant.inputs not in checks:
                inputs = parity_inputs(
                    shapes, variant, options.resolutions, wide=options.precision == "fp32"
                )
                checks[variant.inputs] = run_source_on(job.model, inputs, job.source.label)
    return checks


def _export_one(
    key: str,
    job: Job,
    variants: Sequence[Variant],
    checks: Mapping[Any, Any],
    options: ExportOptions,
    report: Progress,
) -> Iterator[tuple[str, Draft, Parity]]:
    """Write the files of one format, and check each."""
    from ..exporters import export_variants
    from ..exporters.localise import first_diverging_layer
    from ..exporters.parity import check

    half_io = job.fp16_io and job.precision != "fp32"

    report(f"exporting to {key} ({', '.join(variant.name for variant in variants)})")
    drafts = export_variants(key, job, variants)
    for draft in drafts:
        report(f"checking {draft.path.name}")
        sets, expected = checks[draft.variant.inputs]
        try:
            parity = check(draft, sets, expected, options.tolerance, half_io)
        except CheckError as error:
            if _is_random(job, sets, expected, options.tolerance):
                raise CheckError(
                    f"{draft.path.name}: not delivered: the source itself returns something else"
                    " when it is run again on the same inputs",
                    hint="a file can only repeat what stays the same: is a dropout always on?",
                ) from None
            place = first_diverging_layer(draft, job, next(iter(sets.values())), options.tolerance)
            if place is not None:
                error = CheckError(f"{error.message}; {place}", hint=error.hint)
            raise error from None
        yield key, draft, parity


def _is_random(
    job: Job, sets: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float
) -> bool:
    """Whether the source returns something else when it is run again, beyond rounding."""
    from ..exporters.parity import difference

    name, arrays = next(iter(sets.items()))
    again = job.model.run(arrays)
    return any(
        difference(name, output, array, again.get(output)).scaled > tolerance
        for output, array in expected[name].items()
    )


def _measured(
    found: NamedModel,
    overrides: Sequence[str],
    job: Job,
    made: Sequence[tuple[str, Draft, Parity]],
    shapes: Shapes,
) -> dict[Any, dict[str, float]]:
    """Measure the metric of the source, and of the files that take images of the data's size."""
    from ..exporters.metrics import measure

    assert found.spec is not None
    fitting = (None, shapes.resolution)
    drafts = [draft for _, draft, _ in made if draft.variant.resolution in fitting]
    metrics = measure(found.spec, overrides, job, drafts)
    by_path = {draft.path: value for draft, value in zip(drafts, metrics.files, strict=True)}
    return {**by_path, _REFERENCE: metrics.reference}
