"""The sections of a spec, as dataclasses; docs/spec.md says the same for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from .parsing import ENTRYPOINT, Exists, OneOrMany, Rule, doc

FilePath = Annotated[Path, Exists("file")]
FolderPath = Annotated[Path, Exists("folder")]
EntryPoint = Annotated[
    str,
    Rule(
        "module:attribute, such as net:build",
        lambda value: ENTRYPOINT.match(value) is not None,
        {"pattern": ENTRYPOINT.pattern},
    ),
]
NonNegative = Annotated[
    float, Rule("a number of at least 0", lambda value: 0 <= value < 1e300, {"minimum": 0})
]
Fraction = Annotated[
    float,
    Rule("a number from 0 to 1", lambda value: 0 <= value <= 1, {"minimum": 0, "maximum": 1}),
]
Count = Annotated[
    int, Rule("a whole number of at least 1", lambda value: value >= 1, {"minimum": 1})
]
Index = Annotated[
    int, Rule("a whole number of at least 0", lambda value: value >= 0, {"minimum": 0})
]
Names = Annotated[tuple[str, ...], OneOrMany()]
Lines = Annotated[tuple[str, ...], OneOrMany(lines=True)]
DeviceName = Literal["CPU", "GPU"]
FrameworkName = Literal["torch", "torchscript", "tensorflow", "keras", "onnx", "python", "ludwig"]


@dataclass(frozen=True)
class Component:
    """A part that the user names: a built-in, ``module:attribute``, or a dict with arguments."""

    name: str = doc("A built-in name, or module:attribute.")
    kwargs: dict[str, Any] = doc("Its arguments.", factory=dict, rest=True)

    @staticmethod
    def shorthand(value: Any) -> Mapping[str, Any] | None:
        """A bare string is the name."""
        return {"name": value} if isinstance(value, str) else None

    shorthand_types: ClassVar[tuple[str, ...]] = ("string",)


@dataclass(frozen=True)
class CodePath:
    """A folder of Python code to package."""

    python_root: FolderPath = doc("The folder from which the code imports its modules.")
    dirs_to_package: tuple[str, ...] = doc('Subfolders of it to package; "" is all of it.')


@dataclass(frozen=True)
class DataPath:
    """A data file to package."""

    path: FilePath = doc("The file.")
    packaged_name: str = doc("Its name in the package's data folder.")


@dataclass(frozen=True)
class ModelSection:
    """Where the model comes from, and how it is packaged."""

    framework: FrameworkName = doc("The framework of the model.")
    entrypoint: EntryPoint | None = doc("What builds the model (torch, python).", None)
    kwargs: dict[str, Any] = doc("Keyword arguments of the entry point.", factory=dict)
    weights: FilePath | None = doc("safetensors or a weights_only checkpoint (torch).", None)
    file: FilePath | None = doc("The model file (torchscript, keras, onnx).", None)
    saved_model: FolderPath | None = doc("A SavedModel folder (tensorflow).", None)
    graph: FilePath | None = doc("A binary GraphDef (tensorflow).", None)
    node_name_mapping: dict[str, str] | None = doc(
        "Name in the spec to name in the graph (tensorflow) or model (keras).", None
    )
    init_op_names: Names = doc("Graph operations to run after loading.", ())
    directory: FolderPath | None = doc("A Ludwig model folder.", None)
    code_path_spec: tuple[CodePath, ...] | None = doc(
        "Code to package; by default what the entry point imports beside the spec.", None
    )
    data_paths: tuple[DataPath, ...] = doc("Data files to package.", ())
    requirements: Lines | None = doc(
        "What the code needs installed; compiled into a lock with pip.", None
    )
    requirements_lock: FilePath | None = doc("A finished lock to package as it is.", None)
    platform_version_semver: str = doc("npm-style range of framework versions.", "*")
    custom_ops: tuple[FilePath, ...] = doc("Shared libraries with operators.", ())
    input_tensor_device: dict[str, DeviceName] | None = doc("Device of each input.", None)
    default_input_tensor_device: DeviceName = doc("Device of all other inputs.", "GPU")


@dataclass(frozen=True)
class TestSection:
    """Golden data: what proves that a package or an export computes the same."""

    inputs: FilePath | None = doc("An .npz of inputs by name.", None)
    expected: FilePath | None = doc(
        "An .npz of outputs by name; by default the source's own are recorded.", None
    )
    rtol: NonNegative = doc("Permitted relative difference.", 1e-4)
    atol: NonNegative = doc("Permitted absolute difference.", 1e-5)


@dataclass(frozen=True)
class DataSection:
    """The data splits."""

    splits: EntryPoint = doc('Returns {"train": iterable, "test": iterable}.')
    kwargs: dict[str, Any] = doc("Its keyword arguments.", factory=dict)

    @staticmethod
    def shorthand(value: Any) -> Mapping[str, Any] | None:
        """A bare string is ``splits``."""
        return {"splits": value} if isinstance(value, str) else None

    shorthand_types: ClassVar[tuple[str, ...]] = ("string",)


@dataclass(frozen=True)
class ForwardPassSection:
    """How a batch of a loader reaches the model."""

    model_input_pattern: tuple[Index | Literal["_"], ...] | None = doc(
        "Order of the model's arguments among the batch's elements; _ is not for the model.",
        (0, "_"),
    )
    expecting_common_inputs: bool = doc("Elements are tensors, or lists and dicts of them.", True)
    function: EntryPoint | None = doc("A ForwardPass of the user's own.", None)

    @staticmethod
    def shorthand(value: Any) -> Mapping[str, Any] | None:
        """A bare string is ``function``, a bare list the pattern."""
        if isinstance(value, str):
            return {"function": value}
        return {"model_input_pattern": value} if isinstance(value, list | tuple) else None

    shorthand_types: ClassVar[tuple[str, ...]] = ("string", "array")


@dataclass(frozen=True)
class EvaluationSection:
    """The metric that counts."""

    function: Component | None = doc("Returns a dict of metrics for a model and a loader.", None)
    kwargs: dict[str, Any] = doc("Keyword arguments of the function.", factory=dict)
    eval_key: str | None = doc("The metric to listen to.", None)
    eval_split: str = doc("The split on which it is measured.", "test")
    confirm_split: str | None = doc("A split that a search never sees, for the verdict.", None)
    higher_is_better: bool = doc("Whether a larger value is better.", True)
    range: tuple[float, float] | None = doc("The metric's range: [0, 1] or [0, 100].", None)

    @staticmethod
    def shorthand(value: Any) -> Mapping[str, Any] | None:
        """A bare string is the function."""
        return {"function": value} if isinstance(value, str) else None

    shorthand_types: ClassVar[tuple[str, ...]] = ("string",)


@dataclass(frozen=True)
class OptimizationStage:
    """One stage of an optimization; all stages share one delta."""

    mode: Literal["compression", "latency", "quantization"] = doc(
        "What to minimise: bytes, time, or bits.", "compression"
    )
    delta: NonNegative = doc("Permitted drop, in the metric's own range.", 1.0)
    level: Literal[1, 2, 3] = doc("2 and 3 search about twice as long.", 1)
    deepsearch: bool = doc("Search finer, to use up delta.", False)
    device: DeviceName = doc("Where the search runs.", "CPU")
    use_horovod: bool = doc("Train on all devices (torch.distributed).", False)

    @staticmethod
    def shorthand(value: Any) -> Mapping[str, Any] | None:
        """A bare string is the mode."""
        return {"mode": value} if isinstance(value, str) else None

    shorthand_types: ClassVar[tuple[str, ...]] = ("string",)


@dataclass(frozen=True)
class SchedulerSection:
    """A learning-rate schedule."""

    factory: Component = doc("A scheduler of the framework's, or module:attribute.")
    eval_based: bool = doc("It listens to the metric.", False)
    interval: Literal["eval", "epoch", "iteration"] = doc("When it steps.", "epoch")

    @staticmethod
    def shorthand(value: Any) -> Mapping[str, Any] | None:
        """A bare string is the factory."""
        return {"factory": value} if isinstance(value, str) else None

    shorthand_types: ClassVar[tuple[str, ...]] = ("string",)


@dataclass(frozen=True)
class EmaSection:
    """Averaging of weights over time."""

    decay_rate: Fraction = doc("Weight of the average so far.", 0.9999)
    period: Count = doc("Steps between two updates.", 1)


@dataclass(frozen=True)
class FullTrainerSection:
    """Training from scratch, or in full."""

    optimizer: Component | None = doc("An optimizer of the framework's, or module:attribute.", None)
    scheduler: SchedulerSection | None = doc("The learning-rate schedule.", None)
    epochs: Count | None = doc("Passes over the training data.", None)
    eval_freq: Count = doc("Epochs between two evaluations.", 1)
    eval_key: str | None = doc("The metric to listen to.", None)
    eval_split: str | None = doc("The split on which it is measured.", None)
    ema: bool | EmaSection = doc("Average the weights.", False)
    early_stopping_patience: Count | None = doc("Evaluations without progress to wait.", None)


@dataclass(frozen=True)
class LoopParameters:
    """A short training loop."""

    epochs: Count | None = doc("Passes over the training data.", None)
    optimizer: Component | None = doc("As in full_trainer.", None)


@dataclass(frozen=True)
class FineTunerSection:
    """Short training between the steps of a search."""

    loop_params: LoopParameters = doc("The loop.", factory=LoopParameters)


@dataclass(frozen=True)
class QuantizationArgs:
    """Which layers are quantized, by rule."""

    quantize_conv11: bool = doc("Also 1x1 convolutions.", False)
    quantize_group: bool = doc("Also grouped convolutions.", False)
    skip_layers: tuple[Index, ...] | None = doc("Indices of layers to leave alone.", None)
    skip_layers_ratio: Fraction = doc("Share of the first layers to leave alone.", 0.0)


@dataclass(frozen=True)
class LayerPrecision:
    """The precision of one layer."""

    precision: Literal[1, 2, 4, 8, 16, 32] = doc("Bits of its weights.")


@dataclass(frozen=True)
class CustomCompressionSection:
    """Quantization by hand."""

    quantization_args: QuantizationArgs | None = doc(
        "Rules for which layers are quantized.", None, aliases=("quant_args",)
    )
    layers: dict[str, LayerPrecision] = doc("Precision by layer name.", factory=dict)


@dataclass(frozen=True)
class ExportArguments:
    """Options of an export."""

    root_path: Path | None = doc("The folder to write into.", None)
    precision: Literal["fp32", "fp16", "bf16"] = doc("Precision of the weights.", "fp32")
    resolutions: tuple[tuple[Count, Count], ...] = doc("(height, width) of fixed-shape files.", ())


@dataclass(frozen=True)
class ExportSection:
    """What to export."""

    format: Names = doc("A format, or a list of formats.", ("onnx",))
    kwargs: ExportArguments = doc("Options.", factory=ExportArguments)

    @staticmethod
    def shorthand(value: Any) -> Mapping[str, Any] | None:
        """A bare string or list is the format."""
        return {"format": value} if isinstance(value, str | list | tuple) else None

    shorthand_types: ClassVar[tuple[str, ...]] = ("string", "array")


@dataclass(frozen=True)
class TrainingSection:
    """The parts of a training application."""

    inputter: Component | None = doc("Yields batches.", None)
    augmenter: Component | None = doc("Changes training samples at random.", None)
    modeler: Component | None = doc("Owns network, loss and metrics.", None)
    network: Component | None = doc("The network.", None)
    runner: Component | None = doc("Drives the job over the devices.", None)
    callbacks: tuple[Component, ...] = doc("Called before and after runs and steps.", ())
