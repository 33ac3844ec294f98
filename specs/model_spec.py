"""The model spec: one file that describes a model, shared by every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import SpecError
from .normalise import normalise
from .overrides import apply_overrides
from .parsing import doc, parse_section, parse_value, unknown_key
from .sections import (
    Component,
    CustomCompressionSection,
    DataSection,
    EvaluationSection,
    ExportSection,
    FineTunerSection,
    ForwardPassSection,
    FullTrainerSection,
    ModelSection,
    OptimizationStage,
    TestSection,
    TrainingSection,
)
from .source import SpecSource, parse_key, read_source
from .tensors import TensorSpec, parse_tensor_specs

TASKS = ("classification", "object_detection", "segmentation")

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "torch": ("entrypoint",),
    "python": ("entrypoint",),
    "torchscript": ("file",),
    "keras": ("file",),
    "onnx": ("file",),
    "tensorflow": ("saved_model", "graph"),
    "ludwig": ("directory",),
}
"""Exactly one of these keys of ``model`` is needed; the others of this table are refused."""

_ONLY: Mapping[str, tuple[str, ...]] = {
    "weights": ("torch",),
    "kwargs": ("torch", "python"),
    "code_path_spec": ("torch", "python"),
    "data_paths": ("torch", "python"),
    "requirements": ("torch", "python"),
    "requirements_lock": ("torch", "python"),
    "node_name_mapping": ("tensorflow", "keras"),
    "init_op_names": ("tensorflow",),
}
"""Frameworks for which a key of ``model`` means something."""


@dataclass(frozen=True)
class ModelSpec:
    """A model, its data and what is to be done with it.

    Attributes are the sections of the file; ``path`` is the file (None when made in Python) and
    ``root`` the folder against which relative paths were resolved.
    """

    name: str = doc("The model's name; names its artifacts.")
    model: ModelSection = doc("Where the model comes from.")
    inputs: tuple[TensorSpec, ...] | None = doc("What the model takes.", None)
    outputs: tuple[TensorSpec, ...] | None = doc("What the model returns.", None)
    test: TestSection | None = doc("Golden data.", None)
    task: Literal["classification", "object_detection", "segmentation"] | None = doc(
        "Supplies forward pass, loss and evaluation.", None
    )
    data: DataSection | None = doc("The data splits.", None)
    forward_pass: ForwardPassSection = doc(
        "How a batch reaches the model.", factory=ForwardPassSection
    )
    loss: Component | None = doc("The loss.", None)
    evaluation: EvaluationSection | None = doc("The metric that counts.", None)
    optimization: tuple[OptimizationStage, ...] = doc("What to minimise, within delta.", ())
    full_trainer: FullTrainerSection | None = doc("Full training.", None)
    fine_tuner: FineTunerSection | None = doc("Short training within a search.", None)
    external_training_loop: Component | None = doc("The user's own trainer.", None)
    custom_compression: CustomCompressionSection | None = doc("Quantization by hand.", None)
    export: ExportSection | None = doc("What to export.", None)
    training: TrainingSection | None = doc("The parts of a training application.", None)
    bn_fusion: bool = doc("Fold BatchNorm before export.", True)
    run_key: str | None = doc("Identifies data that cannot be hashed, for resuming.", None)
    license: str | None = doc("SPDX expression.", None)
    path: Path | None = doc("", None, hidden=True)
    root: Path = doc("", Path(), hidden=True)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], root: str | Path = ".", overrides: Sequence[str] = ()
    ) -> ModelSpec:
        """Build a spec from a mapping as a file would hold it.

        Args:
            data: the mapping; it is not changed.
            root: the folder against which relative paths resolve.
            overrides: ``key.path=value`` changes.

        Raises:
            SpecError: it is invalid.
        """
        if not isinstance(data, Mapping):
            raise SpecError(f"found a {type(data).__name__}; expected a mapping")
        return _build(SpecSource(dict(data), Path(root).absolute()), overrides)


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> ModelSpec:
    """Load a spec file.

    Args:
        path: a YAML, JSON or TOML file.
        overrides: ``key.path=value`` changes; values are YAML.

    Returns:
        the spec, with absolute paths.

    Raises:
        SpecError: it is invalid; the error names file, line, key, what was found and expected.
    """
    return _build(read_source(Path(path).expanduser()), overrides)


_SECTIONS = tuple(item.name for item in fields(ModelSpec) if item.name not in ("path", "root"))


def _build(source: SpecSource, overrides: Sequence[str]) -> ModelSpec:
    apply_overrides(source, overrides)
    source = normalise(source)
    problem = _problem(source)
    data = source.data
    for key in data:
        if key not in _SECTIONS and key != "problem":
            known = [*_SECTIONS, "problem"]
            raise unknown_key(source, (), str(key), known)
    found: dict[str, Any] = {"path": source.file, "root": source.root, **problem}
    for key in ("inputs", "outputs"):
        if key in data:
            found[key] = _merge_problem(source, problem, key, _tensors(source, key))
    if "test" in data:
        found["test"] = _merge_problem(source, problem, "test", _test(source))
    rest = {key: value for key, value in data.items() if key not in (*found, "problem")}
    stages = rest.pop("optimization", None)
    draft = SpecSource(rest, source.root, source.file, source.lines)
    spec = parse_section(ModelSpec, rest, draft, ())
    spec = replace(spec, **found, optimization=_stages(source, stages))
    _check_model(source, spec)
    return spec


def _tensors(source: SpecSource, key: str) -> tuple[TensorSpec, ...]:
    try:
        return parse_tensor_specs(source.data[key], key)
    except SpecError as error:
        raise source.error(parse_key(error.key or key), error.reason, error.hint) from None


def _test(source: SpecSource) -> TestSection:
    test = parse_section(TestSection, source.data["test"], source, ("test",))
    if test.expected is not None and test.inputs is None:
        raise source.error(
            ("test", "expected"), "expected outputs without inputs: there is nothing to run"
        )
    return test


def _problem(source: SpecSource) -> dict[str, Any]:
    """Read the file that several models of one problem share."""
    if "problem" not in source.data:
        return {}
    path = parse_value(Path, source.data["problem"], source, ("problem",))
    if not path.is_file():
        raise source.error(("problem",), f"{path}: no such file")
    shared = normalise(read_source(path))
    allowed = ("inputs", "outputs", "test")
    for key in shared.data:
        if key not in allowed:
            raise unknown_key(shared, (), str(key), list(allowed))
    found: dict[str, Any] = {}
    for key in ("inputs", "outputs"):
        if key in shared.data:
            found[key] = _tensors(shared, key)
    if "test" in shared.data:
        found["test"] = _test(shared)
    return found


def _merge_problem(source: SpecSource, problem: Mapping[str, Any], key: str, value: Any) -> Any:
    if key in problem and problem[key] != value:
        raise source.error((key,), "differs from the one in 'problem'", "keep one of the two")
    return value


def _stages(source: SpecSource, stages: Any) -> tuple[OptimizationStage, ...]:
    if stages is None:
        return ()
    listed = isinstance(stages, list | tuple)
    entries = list(stages) if listed else [stages]
    parsed = tuple(
        parse_section(
            OptimizationStage,
            entry,
            source,
            ("optimization", index) if listed else ("optimization",),
        )
        for index, entry in enumerate(entries)
    )
    deltas = [
        stage.delta
        for stage, entry in zip(parsed, entries, strict=True)
        if isinstance(entry, Mapping) and "delta" in entry
    ]
    if len(set(deltas)) > 1:
        raise source.error(
            ("optimization",),
            f"found the deltas {', '.join(f'{delta:g}' for delta in sorted(set(deltas)))};"
            " expected one that all stages share",
        )
    return tuple(replace(stage, delta=deltas[0]) for stage in parsed) if deltas else parsed


def _check_model(source: SpecSource, spec: ModelSpec) -> None:
    """Check that the keys of ``model`` fit its framework, and each other."""
    model, path = spec.model, ("model",)
    needs = _NEEDS[model.framework]
    given = [key for key in needs if getattr(model, key) is not None]
    if len(given) != 1:
        expected = " or ".join(repr(key) for key in needs)
        found = "both" if given else "neither" if len(needs) > 1 else "nothing"
        raise source.error(path, f"{model.framework} needs {expected}; found {found}")
    others = {key for keys in _NEEDS.values() for key in keys} - set(needs)
    for key in sorted(others):
        if getattr(model, key) is not None:
            raise source.error(
                (*path, key), f"means nothing for {model.framework}; expected {needs[0]!r}"
            )
    for key, frameworks in _ONLY.items():
        if getattr(model, key) and model.framework not in frameworks:
            raise source.error(
                (*path, key),
                f"means nothing for {model.framework}; only for {' and '.join(frameworks)}",
            )
    if model.requirements is not None and model.requirements_lock is not None:
        raise source.error((*path, "requirements_lock"), "there is 'requirements' as well")
    if model.framework in ("torch", "torchscript", "python") or model.graph is not None:
        for key, value in (("inputs", spec.inputs), ("outputs", spec.outputs)):
            if value is None:
                raise source.error((), f"the key {key!r} is missing")
    _check_names(source, spec)


def _check_names(source: SpecSource, spec: ModelSpec) -> None:
    model = spec.model
    names = [tensor.name for tensor in (*(spec.inputs or ()), *(spec.outputs or ()))]
    if model.graph is not None:
        mapping = model.node_name_mapping or {}
        for name in names:
            if name not in mapping:
                raise source.error(
                    ("model", "node_name_mapping"),
                    f"no entry for {name!r}; expected a node for every input and output,"
                    f" found {', '.join(sorted(mapping)) or 'none'}",
                )
    inputs = [tensor.name for tensor in spec.inputs or ()]
    for name in model.input_tensor_device or {}:
        if spec.inputs is not None and name not in inputs:
            raise source.error(
                ("model", "input_tensor_device", name),
                f"unknown input; expected one of {', '.join(inputs)}",
            )
