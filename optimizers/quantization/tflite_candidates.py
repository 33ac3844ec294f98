"""Writes candidates of one float TensorFlow Lite file."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import ModelError
from ...runtime.atomic import replacing
from .allocation import noise_ratio
from .calibration import check_batches
from .layers import QuantLayer
from .onnx_candidates import first_samples
from .plan import FLOAT, Plan, Precision
from .rules import possible_bits
from .sensitivity import output_snr
from .tflite import quantize_tflite
from .tflite_graph import FloatGraph, TfliteLayer, graph_layers, read_tflite

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, Array]

_LOUDEST = 100.0
"""A signal-to-noise ratio in dB beyond which nothing was lost."""
_SENSITIVITY_SAMPLES = 32
"""Samples that the output is compared on, layer by layer."""
_CHANNEL_AXES = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0, "FULLY_CONNECTED": 0}
"""Of the output channels; the last one for a ``BATCH_MATMUL``."""
_KERNELS = re.compile(r"(convolution|depthwise|conv\w*transpose|matmul|einsum)\w*$", re.IGNORECASE)
"""The last part of what TensorFlow calls an operator that has weights."""
_CALLS = re.compile(r"^((Stateful)?PartitionedCall/)+")
"""What a SavedModel puts before the names of its layers."""
_COUNT = re.compile(r"_\d+$")


@dataclass(frozen=True)
class TfliteQuantLayer(QuantLayer):
    """A layer of a TensorFlow Lite file; ``op_type`` is what LiteRT calls its operator.

    ``shape`` is that of the weight in the file: output channels first, or last if depthwise.
    ``node`` and ``weight`` are the name that :func:`.tflite.quantize_tflite` knows it by.
    """

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a convolution over single points."""
        is_convolution = self.op_type in ("CONV_2D", "DEPTHWISE_CONV_2D")
        return is_convolution and all(size == 1 for size in self.kernel)


class TfliteCandidates:
    """Candidates of a TensorFlow Lite file.

    A layer whose operator has no weights of so many bits gets the next wider ones.

    Args:
        path: the float32 file.
        feeds: inputs by name, to calibrate on. None is needed to list the layers, or for candidates
            whose activations stay float.

    Raises:
        InputError: an input holds NaN.
        ModelError: the file is something else, damaged or quantized already, or has no layer to
            quantize.
        MissingDependencyError: LiteRT is not installed.
    """

    def __init__(self, path: Path, feeds: Sequence[Feeds]) -> None:
        if feeds:
            check_batches(feeds)
        self._path = path
        self._feeds = feeds
        self._graph = FloatGraph(read_tflite(path, path.name), path.name)
        found = graph_layers(self._graph)
        if not found:
            raise ModelError(
                f"{path.name}: found no layer that can be quantized; expected a convolution or a"
                " product with a constant matrix"
            )
        self._layers = tuple(
            self._layer(layer, name) for layer, name in zip(found, source_names(found), strict=True)
        )

    @property
    def layers(self) -> tuple[QuantLayer, ...]:
        """The layers that can be quantized, in the order of the graph."""
        return self._layers

    def noise(
        self, precisions: Mapping[str, Iterable[Precision]]
    ) -> dict[str, dict[Precision, float]]:
        """Return the noise of the output with one layer quantized, as a part of the signal.

        Precisions that TensorFlow Lite does not have for a layer are left out.
        """
        few = first_samples(self._feeds, _SENSITIVITY_SAMPLES)
        check_batches(few)
        expected = _outputs(self._path, few)
        found: dict[str, dict[Precision, float]] = {}
        with tempfile.TemporaryDirectory(prefix="ingot-") as folder:
            path = Path(folder, "layer.tflite")
            for layer in self._layers:
                row = found.setdefault(layer.name, {})
                for precision in sorted(set(precisions.get(layer.name, ()))):
                    if precision.weight not in possible_bits(layer, "tflite"):
                        continue
                    self._write({layer.name: precision}, path, few)
                    snr = output_snr(expected, _outputs(path, few))
                    row[precision] = noise_ratio(min(snr, _LOUDEST))
        return {name: row for name, row in found.items() if name in precisions}

    def effective(self, plan: Plan) -> dict[str, Precision]:
        """Return what layers really get: bits that LiteRT runs."""
        found = {}
        for layer in self._layers:
            if layer.name in plan:
                wanted = plan[layer.name]
                bits = min(it for it in possible_bits(layer, "tflite") if it >= wanted.weight)
                found[layer.name] = Precision(bits, wanted.activation if bits <= 8 else 32)
        return found

    def write(self, plan: Plan, path: Path) -> None:
        """Write a candidate.

        Raises:
            InputError: there is no input to calibrate on.
        """
        self._write(plan, path, self._feeds)

    def write_like(
        self, plan: Plan, path: Path, layers: Sequence[QuantLayer] | None = None
    ) -> None:
        """Write a file with the precisions of a plan that was made for another format.

        Layers are matched by name; where the formats name them differently, by their order.

        Args:
            plan: precisions by the layer's name in the other format.
            path: where to.
            layers: of the other format, in the order of its graph; None matches by name only.

        Raises:
            ModelError: the layers of the two formats are not the same ones.
        """
        here = {layer.name: layer for layer in self._layers}
        if plan.keys() <= here.keys():
            return self.write(plan, path)
        if layers is None:
            stranger = min(plan.keys() - here.keys())
            raise ModelError(
                f"{self._path.name}: no layer is called {stranger!r}, as in the plan; found"
                f" {', '.join(here)}"
            )
        sizes = [layer.parameters for layer in self._layers]
        wanted = [layer.parameters for layer in layers]
        if sizes != wanted:
            place = next(
                (
                    i
                    for i, pair in enumerate(zip(sizes, wanted, strict=False))
                    if len(set(pair)) > 1
                ),
                min(len(sizes), len(wanted)),
            )
            raise ModelError(
                f"{self._path.name}: the layers are not those of the plan: found"
                f" {_shown(self._layers, place)} in the place of {_shown(layers, place)}",
                hint="quantize to tflite alone: --format tflite",
            )
        pairs = zip(self._layers, layers, strict=True)
        self.write({one.name: plan[other.name] for one, other in pairs if other.name in plan}, path)

    def errors(self, plan: Plan) -> dict[str, float]:
        """Return the signal-to-noise ratio in dB of each layer's rounded weights, by layer."""
        with tempfile.TemporaryDirectory(prefix="ingot-") as folder:
            path = Path(folder, "plan.tflite")
            self.write(plan, path)
            before, after = _weights(self._path), _weights(path)
        found = {}
        for layer in self._layers:
            if plan.get(layer.name, FLOAT).weight <= 8:
                snr = output_snr([before[layer.weight]], [after[layer.weight]])
                found[layer.name] = round(min(snr, _LOUDEST), 1)
        return found

    def _write(self, plan: Plan, path: Path, feeds: Sequence[Feeds]) -> None:
        real = self.effective(plan)
        nodes = {layer.name: layer.node for layer in self._layers}
        bits = {nodes[name]: precision.weight for name, precision in real.items()}
        if set(bits.values()) <= {32}:
            with replacing(path) as part:
                shutil.copyfile(self._path, part)
            return
        activations: dict[str, Literal[8, 32]] = {
            nodes[name]: 8 if precision.activation == 8 else 32 for name, precision in real.items()
        }
        quantize_tflite(self._path, path, bits, feeds, activations)

    def _layer(self, layer: TfliteLayer, name: str) -> TfliteQuantLayer:
        operator = next(
            item
            for item in self._graph.operators
            if self._graph.scope(item) == layer.scope and self._graph.op(item) == layer.op
        )
        weight = self._graph.tensors[operator.inputs[1]].name.decode()
        channels = int(self._graph.tensors[operator.inputs[0]].shape[-1])
        group = 1
        if layer.op == "DEPTHWISE_CONV_2D":
            group = channels
        elif layer.op == "CONV_2D":  # a group sees a part of the input's channels
            group = max(1, channels // layer.shape[3])
        return TfliteQuantLayer(
            index=layer.index,
            name=name,
            op_type=layer.op,
            node=layer.name,
            weight=weight,
            shape=layer.shape,
            channel_axis=_CHANNEL_AXES.get(layer.op, len(layer.shape) - 1),
            group=group,
            kernel=layer.shape[1:3] if "CONV" in layer.op else (),
        )


def source_names(layers: Sequence[TfliteLayer]) -> list[str]:
    """Return what the source calls layers: modules of PyTorch as they are, layers of Keras.

    TensorFlow calls an operator ``model_1/block_1/conv_1/convolution``: the path of its layer, each
    part with a count behind it. The model's own name and the counts are left out, ``block/conv``.
    Where the names are others, or would be those of several layers, they stay what the file says.
    """
    raw = [layer.name for layer in layers]
    paths = [_CALLS.sub("", _scope(layer)).split("/") for layer in layers]
    if not all("/" in name for name in raw):
        return raw
    if all(_COUNT.search(part) for path in paths for part in path):
        paths = [[_COUNT.sub("", part) for part in path] for path in paths]
    if len({path[0] for path in paths}) == 1 and all(len(path) > 1 for path in paths):
        paths = [path[1:] for path in paths]
    names = ["/".join(path) for path in paths]
    return names if len(set(names)) == len(names) else raw


def _scope(layer: TfliteLayer) -> str:
    """Return the layer of an operator; the converter names what it fuses by all its parts."""
    for part in layer.scope.split(";"):
        name, _, last = part.rpartition("/")
        if name and _KERNELS.match(last):
            return name
    return layer.name.partition("#")[0]


def _outputs(path: Path, feeds: Sequence[Feeds]) -> list[Array]:
    """Return the outputs of a file, one array an output of each batch."""
    from ...frameworks import LoadOptions, ModelSource, open_model

    source = ModelSource("tflite", path.name, None, None, path)
    model = open_model(source, LoadOptions(threads=1))
    try:
        results = [model.run(feed) for feed in feeds]
    finally:
        model.close()
    return [result[name] for result in results for name in sorted(result)]


def _weights(path: Path) -> dict[str, Array]:
    """Return the constant tensors of a file as float32, by name; those of integers times scales."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = schema.TensorType
    types = {kinds.FLOAT32: np.float32, kinds.FLOAT16: np.float16, kinds.INT8: np.int8}
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    found = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) == 0 or tensor.type not in (*types, kinds.INT4):
                continue
            raw = np.asarray(data, np.uint8)
            count = int(np.prod(tensor.shape))
            values = _unpacked(raw, count) if tensor.type == kinds.INT4 else None
            if values is None:
                values = raw.view(types[tensor.type])
            values = values.reshape(tensor.shape).astype(np.float32)
            scales = None if tensor.quantization is None else tensor.quantization.scale
            if scales is not None and len(scales):
                shape = [1] * values.ndim
                shape[tensor.quantization.quantizedDimension] = len(scales)
                values = values * np.asarray(scales, np.float32).reshape(shape)
            found[tensor.name.decode()] = values
    return found


def _unpacked(raw: Array, count: int) -> Array:
    """Return signed integers of 4 bits, two of which lie in a byte, the low half first."""
    pairs = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
    return np.where(pairs > 7, pairs - 16, pairs).astype(np.int8)


def _shown(layers: Sequence[QuantLayer], place: int) -> str:
    if place >= len(layers):
        return "nothing"
    return f"{layers[place].name!r} with {layers[place].parameters} parameters"
