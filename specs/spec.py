"""The model spec: one file that describes a model, shared by every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from .. import __version__
from ..errors import SpecError
from .canonical import canonicalise, put
from .declare import Component, Rule, Section, key, keys_of, plain_values
from .model import ModelSection
from .nodes import Node, Origin, build
from .overrides import Override, parse_overrides
from .parsing import Parser, unknown_key
from .reading import read_tree
from .sections import (
    EVALUATION_KEYS,
    EXTERNAL_LOOP,
    STAGE_KEYS,
    CustomCompressionSection,
    DataSection,
    EvaluationSection,
    ExportSection,
    ForwardPassSection,
    Stage,
    TestSection,
)
from .tensors import TensorSpec
from .training import FineTunerSection, FullTrainerSection, TrainingSection
from .tune import TuneSection

Task = Literal["classification", "object_detection", "segmentation"]

_INPUTS = Rule(
    "What the model takes: `{name, dtype, shape}` each; a shape holds sizes, symbols (the same size"
    " wherever they stand) and null (any size).",
    aliases=("input_spec",),
)
_OUTPUTS = Rule("What the model returns, written like `inputs`.", aliases=("output_spec",))
_SILENT = ("torch", "python", "torchscript")
"""Frameworks whose models do not say the types and shapes of their tensors."""

FORMAT_VERSION = 1
"""The only version of the format of specs so far."""

ROOT = "The folder that paths are relative to, and where the code lies; the file's by default."
"""What the key ``root`` of a spec file means; it is no key of a spec given in Python."""

_TEST = Rule("Golden data: what the packaged model is tested with.")


@dataclass(frozen=True)
class ProblemSpec(Section):
    """What several models of one problem share: the content of a ``problem`` file."""

    inputs: tuple[TensorSpec, ...] | None = key(_INPUTS, default=None)
    outputs: tuple[TensorSpec, ...] | None = key(_OUTPUTS, default=None)
    test: TestSection | None = key(_TEST, default=None)


@dataclass(frozen=True)
class ModelSpec(Section):
    """A model and what is to be done with it. All paths are absolute.

    A section that the spec does not have is None, but for ``forward_pass``, ``evaluation`` and
    ``optimization``, which have defaults. Two specs are equal when they say the same, whatever file
    they come from.

    Attributes:
        path: the spec file; None for a spec given in Python.
        root: the folder that relative paths were resolved against, and where the code lies.
    """

    model: ModelSection = key("Where the model comes from.")
    format_version: Literal[1] | None = key(
        "Version of the format, which exported files name.", default=None
    )
    name: str = key(
        Rule(
            "The model's name; the spec file's by default.",
            pattern=r"^[^/\\\x00-\x1f\x7f]*[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]*$",
            form="a name that can be a file name",
            aliases=("model_name",),
        ),
        default="model",
    )
    inputs: tuple[TensorSpec, ...] | None = key(_INPUTS, default=None)
    outputs: tuple[TensorSpec, ...] | None = key(_OUTPUTS, default=None)
    test: TestSection | None = key(_TEST, default=None)
    problem: Path | None = key(
        Rule(
            "A file that gives `inputs`, `outputs` and `test` for several models of one problem.",
            exists="file",
        ),
        default=None,
    )
    task: Task | None = key(
        Rule("Supplies forward pass, loss and evaluation.", aliases=("task_type",)), default=None
    )
    data: DataSection | None = key("The data splits.", default=None)
    forward_pass: ForwardPassSection = key(
        "How a batch becomes the arguments of the model.", default_factory=ForwardPassSection
    )
    loss: Component | None = key(
        "The loss: a built-in name, `{name, **kwargs}` or `module:Class`.", default=None
    )
    evaluation: EvaluationSection = key(
        "What is measured, and which number counts.", default_factory=EvaluationSection
    )
    optimization: tuple[Stage, ...] = key(
        Rule(
            "What is minimised: a mode, a mapping, or a list of stages that share one delta.",
            min_items=1,
        ),
        default=(Stage(),),
    )
    full_trainer: FullTrainerSection | None = key("Full training.", default=None)
    fine_tuner: FineTunerSection | None = key(
        "Short training between the steps of a search.", default=None
    )
    external_training_loop: str | None = key(EXTERNAL_LOOP, default=None)
    custom_compression: CustomCompressionSection | None = key(
        "Quantization by rules, or layer by layer.", default=None
    )
    bn_fusion: bool | None = key(
        "Fold BatchNorm before export; null leaves it to the exporter.", default=None
    )
    export: ExportSection | None = key("What models are exported to.", default=None)
    training: TrainingSection | None = key(
        "The parts of a training run, and more of its options.", default=None
    )
    tune: TuneSection | None = key("What a search of hyper-parameters draws.", default=None)
    run_key: str | None = key(
        "Names the data in the journal of a search, where data cannot be hashed.", default=None
    )
    license: str | None = key(
        Rule("Licence of the model (SPDX).", aliases=("licence",)), default=None
    )
    path: Path | None = field(default=None, compare=False)
    root: Path = field(default_factory=Path.cwd)

    @classmethod
    def prepare(cls, node: Node) -> Node:
        """Make ``optimization`` a list of stages, and move Neutrino's top-level keys into place.

        Raises:
            SpecError: it is of another version of the format, or a key is given twice.
        """
        if not isinstance(node.value, dict):
            return node
        _check_version(node.at("format_version"))
        stages = node.value.setdefault("optimization", node.with_value({}))
        if not isinstance(stages.value, list):
            stages = node.value["optimization"] = stages.with_value([stages])
        stages.value = [Stage.prepare(stage) for stage in stages.value]
        for name in STAGE_KEYS:
            if name in node.value:
                child = node.value.pop(name)
                for stage in stages.value:
                    if isinstance(stage.value, dict):
                        put(stage, name, child)
        moved = [name for name in EVALUATION_KEYS if name in node.value]
        if moved:
            section = node.value.setdefault("evaluation", node.with_value({}))
            section = node.value["evaluation"] = EvaluationSection.prepare(section)
            for name in moved:
                child = node.value.pop(name)
                if isinstance(section.value, dict):
                    put(section, name, child)
        return node

    @classmethod
    def from_dict(
        cls,
        mapping: Mapping[str, Any],
        root: str | Path | None = None,
        *,
        overrides: Sequence[str] = (),
        check_files: bool = True,
    ) -> ModelSpec:
        """Build a spec from plain values.

        Args:
            mapping: what a spec file holds; tuples, paths and :class:`TensorSpec` are taken too.
            root: the folder that relative paths are resolved against; None is the current folder.
            overrides: ``key.path=value`` changes.
            check_files: the files that it names have to exist.

        Raises:
            SpecError: the spec is invalid; ``error.key`` says where.
        """
        folder = Path.cwd() if root is None else Path(root).expanduser().absolute()
        node = build(mapping, Origin(None, folder))
        return _load(node, parse_overrides(overrides, folder), None, folder, check_files)

    def checked(self, node: Node) -> Self:
        """Check the model against the inputs and outputs."""
        model = node.at("model")
        tensors = (*(self.inputs or ()), *(self.outputs or ()))
        if self.model.framework in _SILENT or self.model.graph is not None:
            for name in ("inputs", "outputs"):
                if getattr(self, name) is None:
                    raise node.error(
                        f"the key {name!r} is missing; the model does not say its tensors itself"
                    )
        mapping = self.model.node_name_mapping or {}
        for tensor in tensors if self.model.node_name_mapping is not None else ():
            if tensor.name not in mapping:
                raise model.at("node_name_mapping").error(
                    f"no entry for {tensor.name!r}; expected one for every input and output,"
                    f" found {', '.join(sorted(mapping)) or 'none'}"
                )
        names = [tensor.name for tensor in self.inputs or ()]
        for name in self.model.input_tensor_device or {} if self.inputs is not None else {}:
            if name not in names:
                raise model.at("input_tensor_device").error(
                    f"found {name!r}; expected the name of an input ({', '.join(names)})"
                )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values that :meth:`from_dict` reads; defaults are left out."""
        found = plain_values(self)
        assert isinstance(found, dict)
        return found


def load_spec(
    path: str | Path, overrides: Sequence[str] = (), *, check_files: bool = True
) -> ModelSpec:
    """Load a spec file.

    Args:
        path: a ``.yaml``, ``.yml``, ``.json`` or ``.toml`` file.
        overrides: ``key.path=value`` changes, the value in YAML; they apply in order.
        check_files: the files that the spec names have to exist.

    Raises:
        SpecError: the file cannot be read, or the spec is invalid; it names file, line and key.
    """
    try:
        path = Path(path).expanduser()
    except RuntimeError:
        raise SpecError("the home folder of '~' is unknown", file=path) from None
    node = read_tree(path)
    absolute = path.absolute()
    root = _take_root(node, absolute.parent)
    changes = parse_overrides(overrides, root)
    if not {"name", "model_name"} & node.value.keys():
        node.value["name"] = node.with_value(absolute.stem)
    return _load(node, changes, absolute, root, check_files)


def _take_root(node: Node, folder: Path) -> Path:
    """Return the folder that paths in a file are resolved against: its own, or its ``root``.

    A spec that is written for another one, such as the best of a study, lies elsewhere.
    """
    given = node.value.pop("root", None)
    if given is None:
        return folder
    declared = Rule(ROOT, exists="folder")
    root: Path = Parser().value(given, Path, declared)
    _reroot(node, root)
    return root


def _reroot(node: Node, root: Path) -> None:
    node.origin = replace(node.origin, root=root)
    if isinstance(node.value, dict | list):
        for child in node.value.values() if isinstance(node.value, dict) else node.value:
            _reroot(child, root)


def _load(
    node: Node, overrides: Sequence[Override], path: Path | None, root: Path, check_files: bool
) -> ModelSpec:
    parser = Parser(check_files)
    if not isinstance(node.value, dict):
        raise node.wrong("a mapping of keys to values")
    node = canonicalise(node, ModelSpec)
    # The name of the problem file has to be final before what is in it can be changed.
    for override in sorted(overrides, key=lambda item: item.path[0] != "problem"):
        if override.path[0] != "problem":
            break
        override.apply(node, ModelSpec)
    node = _with_problem(node, parser)
    for override in overrides:
        if override.path[0] != "problem":
            override.apply(node, ModelSpec)
            node = canonicalise(node, ModelSpec)
    _share(node)
    spec = parser.section(node, ModelSpec)
    object.__setattr__(spec, "path", path)
    object.__setattr__(spec, "root", root)
    return spec


def _check_version(node: Node) -> None:
    """Check the version first: what else a later one says is not known here."""
    found = node.value
    if isinstance(found, int) and not isinstance(found, bool) and found != FORMAT_VERSION:
        raise node.error(
            f"found {found}; expected {FORMAT_VERSION}, the only version of the format that Ingot"
            f" {__version__} reads",
            hint="a newer Ingot wrote it, and is needed to read it: pip install -U ingot",
        )


def _with_problem(node: Node, parser: Parser) -> Node:
    """Add what the problem file says; what stands in both places has to be equal."""
    reference = node.value.get("problem")
    if reference is None or reference.value is None:
        return node
    declared = keys_of(ModelSpec)["problem"]
    # The rest of the spec cannot be checked without the file, so it has to be there always.
    path = Parser().value(reference, declared.hint, declared.rule)
    problem = canonicalise(read_tree(path), ProblemSpec)
    for name, child in problem.value.items():
        item = keys_of(ProblemSpec).get(name)
        if item is None:
            raise unknown_key(child, name, ProblemSpec)
        own = node.value.setdefault(name, child)
        if own is not child:
            theirs = parser.value(child, item.hint, item.rule)
            if parser.value(own, item.hint, item.rule) != theirs:
                at = path if child.line is None else f"{path}:{child.line}"
                raise own.error(f"differs from {name!r} in {at}; expected it in one place")
    return node


def _share(node: Node) -> None:
    """Let stages share their delta, and ``evaluation`` take what only ``full_trainer`` says."""
    stages = node.value["optimization"].value
    stages = [stage for stage in stages if isinstance(stage.value, dict)]
    given = next((stage.value["delta"] for stage in stages if "delta" in stage.value), None)
    for stage in stages:
        if given is not None:
            put(stage, "delta", given)
    modes: list[Any] = []
    for stage in stages:
        mode = stage.at("mode").value if "mode" in stage.value else "compression"
        if mode in modes:
            raise stage.error(f"a second stage with the mode {mode!r}; expected each mode once")
        modes.append(mode)
    trainer = node.value.get("full_trainer")
    if trainer is None or not isinstance(trainer.value, dict):
        return
    for name in EVALUATION_KEYS:
        if trainer.at(name).value is not None and name in trainer.value:
            section = node.value.setdefault("evaluation", node.with_value({}))
            if isinstance(section.value, dict):
                section.value.setdefault(name, trainer.value[name])
