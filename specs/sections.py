"""The sections about testing, data, evaluation, optimization and export."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from .declare import COMPONENT, ENTRYPOINT, Rule, Section, key
from .model import Device
from .nodes import Node

Mode = Literal["compression", "latency", "quantization"]
Format = Literal["onnx", "jit", "tflite", "dlrt", "pt2", "savedmodel", "openvino", "safetensors"]
_TEXT = ({"type": "string"},)
_BUILT_IN = "a built-in name or module:attribute"


@dataclass(frozen=True)
class TestSection(Section):
    """Golden data: what the packaged model is tested with."""

    __test__: ClassVar[bool] = False  # pytest would take the name for a test

    inputs: Path | None = key(Rule("Golden inputs (`.npz`).", exists="file"), default=None)
    expected: Path | None = key(
        Rule("Expected outputs (`.npz`); the source's own are recorded otherwise.", exists="file"),
        default=None,
    )
    rtol: float = key(Rule("Relative tolerance.", minimum=0), default=1e-4)
    atol: float = key(Rule("Absolute tolerance.", minimum=0), default=1e-5)

    def checked(self, node: Node) -> Self:
        """Refuse outputs that belong to no inputs."""
        if self.expected is not None and self.inputs is None:
            raise node.at("expected").error("found without 'inputs'; expected both or neither")
        return self


@dataclass(frozen=True)
class DataSection(Section):
    """The data splits."""

    shorthand: ClassVar[str] = "splits"
    also: ClassVar[tuple[dict[str, Any], ...]] = _TEXT

    splits: str = key(
        Rule(
            'Callable that returns `{"train": iterable, "test": iterable}`.',
            pattern=COMPONENT,
            form=_BUILT_IN,
        )
    )
    kwargs: dict[str, Any] = key("Its keyword arguments.", default_factory=dict)


@dataclass(frozen=True)
class ForwardPassSection(Section):
    """How a batch of the data becomes the arguments of the model."""

    shorthand: ClassVar[str] = "name"
    also: ClassVar[tuple[dict[str, Any], ...]] = _TEXT

    name: str | None = key(
        Rule("A forward pass of your own.", pattern=COMPONENT, form=_BUILT_IN), default=None
    )
    kwargs: dict[str, Any] = key("Its keyword arguments.", default_factory=dict)
    model_input_pattern: tuple[int | Literal["_"], ...] | None = key(
        Rule(
            "For each element of a batch the position of its argument, or `_` to leave it out.",
            minimum=0,
            min_items=1,
        ),
        default=(0, "_"),
    )
    expecting_common_inputs: bool = key(
        "Batches are tensors, or lists, tuples or dicts of tensors.", default=True
    )

    def checked(self, node: Node) -> Self:
        """Check that the positions are 0, 1, 2, ... in some order."""
        positions = [item for item in self.model_input_pattern or () if isinstance(item, int)]
        fits = sorted(positions) == list(range(len(positions))) and positions
        if self.model_input_pattern is not None and not fits:
            raise node.at("model_input_pattern").error(
                f"found {list(self.model_input_pattern)}; expected every argument position from 0"
                " on once, and '_' elsewhere"
            )
        return self


@dataclass(frozen=True)
class EvaluationSection(Section):
    """What is measured, and which number counts."""

    shorthand: ClassVar[str] = "function"
    also: ClassVar[tuple[dict[str, Any], ...]] = _TEXT

    function: str | None = key(
        Rule(
            "Evaluation `(model, loader)` that returns a dict of metrics; the task's by default.",
            pattern=COMPONENT,
            form=_BUILT_IN,
        ),
        default=None,
    )
    kwargs: dict[str, Any] = key("Its keyword arguments.", default_factory=dict)
    eval_key: str | None = key("The metric that counts; the task's by default.", default=None)
    eval_split: str = key("The split that it is measured on.", default="test")
    confirm_split: str | None = key(
        "A split that no search sees, for the last measurement.", default=None
    )
    higher_is_better: bool = key("Whether a larger value is better.", default=True)
    range: tuple[float, float] | None = key(
        "Lowest and highest value; `[0, 1]` or `[0, 100]` from the reference's by default.",
        default=None,
    )

    def checked(self, node: Node) -> Self:
        """Check the order of the range."""
        if self.range is not None and self.range[0] >= self.range[1]:
            raise node.at("range").error(
                f"found {list(self.range)}; expected the lowest value, then the highest"
            )
        return self


@dataclass(frozen=True)
class Stage(Section):
    """One optimization; several of them share one delta."""

    shorthand: ClassVar[str] = "mode"
    also: ClassVar[tuple[dict[str, Any], ...]] = _TEXT

    mode: Mode = key("What is minimised: bytes, time or bits.", default="compression")
    delta: float = key(
        Rule("Permitted drop of the metric, in its own range.", minimum=0), default=1.0
    )
    level: Literal[1, 2, 3] = key(
        "2 takes about twice the time and compresses more; 3 means 2.", default=1
    )
    deepsearch: bool = key("Search finer, and use up most of delta.", default=False)
    device: Device | None = key(
        Rule("Where the search runs; a GPU where there is one by default.", upper=True),
        default=None,
    )
    use_horovod: bool = key("Train on several devices (torch.distributed).", default=False)

    def checked(self, node: Node) -> Self:
        """Read level 3 as 2."""
        return replace(self, level=2) if self.level == 3 else self


@dataclass(frozen=True)
class QuantizationArgs(Section):
    """Rules that choose the layers to quantize."""

    quantize_conv11: bool = key("Quantize 1x1 convolutions.", default=False)
    quantize_group: bool = key("Quantize grouped convolutions.", default=False)
    skip_layers: tuple[int, ...] | None = key(
        Rule("Layers to leave, by index in graph order.", minimum=0), default=()
    )
    skip_layers_ratio: float = key(
        Rule("Share of the first layers to leave.", minimum=0, maximum=1), default=0.0
    )

    def checked(self, node: Node) -> Self:
        """Read null as no layers."""
        return replace(self, skip_layers=self.skip_layers or ())


@dataclass(frozen=True)
class LayerPrecision(Section):
    """The precision of one layer."""

    precision: int = key(Rule("Bits.", minimum=1, maximum=32))


@dataclass(frozen=True)
class CustomCompressionSection(Section):
    """Quantization by rules, or layer by layer."""

    quantization_args: QuantizationArgs | None = key(
        Rule("Rules that choose the layers to quantize.", aliases=("quant_args",)), default=None
    )
    layers: dict[str, LayerPrecision] = key(
        "Precision by module name; a layer that is not named stays as it is.",
        default_factory=dict,
    )


@dataclass(frozen=True)
class ExportKwargs(Section):
    """How models are exported."""

    root_path: Path | None = key("Folder to write to.", default=None)
    precision: Literal["fp32", "fp16", "bf16"] = key("Type of the weights.", default="fp32")
    resolutions: tuple[tuple[int, int], ...] = key(
        Rule("`[height, width]` of each fixed-shape file.", minimum=1), default=()
    )


@dataclass(frozen=True)
class ExportSection(Section):
    """What models are exported to."""

    format: tuple[Format, ...] | None = key(
        Rule("One format, or a list.", single="item"), default=()
    )
    kwargs: ExportKwargs = key("How they are exported.", default_factory=ExportKwargs)

    def checked(self, node: Node) -> Self:
        """Read null as no formats."""
        return replace(self, format=self.format or ())


STAGE_KEYS = ("delta", "level", "deepsearch", "device", "use_horovod")
"""Keys of a stage that Neutrino has at the top level; they hold for every stage."""

EVALUATION_KEYS = ("eval_key", "eval_split")
"""Keys of ``evaluation`` that Neutrino has at the top level."""

EXTERNAL_LOOP = Rule(
    "A trainer of your own: `train(model, epochs, validation, finetuning)`.",
    pattern=ENTRYPOINT,
    form="module:attribute",
)
