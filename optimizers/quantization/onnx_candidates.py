"""Writes candidates of one float ONNX model, calibrated the way that loses least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelError
from ...runtime.atomic import replacing
from ..journal import Journal
from .allocation import noise_ratio
from .bias_correction import correct_biases
from .calibration import METHODS, Ranges, calibrate, check_batches, open_session
from .equalization import equalize
from .layers import QuantLayer, quantizable_layers
from .plan import INT8, Plan, Precision
from .prepare import prepare
from .qdq import integer_weights, quantize
from .regions import effective
from .sensitivity import output_snr, sensitivities
from .weights import QuantizedWeight, dequantize

if TYPE_CHECKING:
    import onnx

    Feeds = Mapping[str, np.ndarray[Any, Any]]

_SMALLEST_GAIN = 0.1
"""Decibels that a variant has to gain before it is taken in place of a simpler one."""
_LOUDEST = 100.0
"""A signal-to-noise ratio in dB beyond which nothing was lost."""
_SENSITIVITY_SAMPLES = 32
"""Samples that the output is compared on, layer by layer."""


class OnnxCandidates:
    """Candidates of an ONNX model.

    Which calibration is used, and whether weights are equalised and biases corrected, is decided
    once, by the output's error with 8 bits everywhere; the journal keeps it.

    Args:
        path: the float file.
        feeds: inputs by name, to calibrate on.
        journal: keeps what was decided.
        reduce_range: weights of 7 bits where activations are quantized.
        report: gets a line for each thing that happens.

    Raises:
        InputError: there is no input, or one holds NaN.
        ModelError: the model is quantized already, is too large, or has no layer to quantize.
    """

    def __init__(
        self,
        path: Path,
        feeds: Sequence[Feeds],
        journal: Journal,
        reduce_range: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        check_batches(feeds)
        self._feeds = feeds
        self._journal = journal
        self._reduce_range = reduce_range
        self._report = report
        self.plain = prepare(path)
        self._layers = quantizable_layers(self.plain)
        if not self._layers:
            raise ModelError(
                f"{path.name}: found no layer that can be quantized; expected a convolution or a"
                " product with a constant matrix"
            )

    @property
    def layers(self) -> tuple[QuantLayer, ...]:
        """The layers that can be quantized, in the order of the graph."""
        return self._layers

    def prepared(self, path: Path) -> onnx.ModelProto:
        """Return the prepared graph of another float file."""
        return prepare(path)

    def noise(
        self, precisions: Mapping[str, Iterable[Precision]]
    ) -> dict[str, dict[Precision, float]]:
        """Return the noise of the output with one layer quantized, as a part of the signal."""
        wanted = sorted({item for row in precisions.values() for item in row})
        layers = [layer for layer in self._layers if layer.name in precisions]
        reduce_range = self._reduce_range
        found = sensitivities(
            self._model, layers, self._ranges, self._few, wanted, reduce_range=reduce_range
        )
        return {
            name: {item: noise_ratio(min(row[item], _LOUDEST)) for item in wanted}
            for name, row in found.items()
        }

    def effective(self, plan: Plan) -> dict[str, Precision]:
        """Return what layers really get: without an integer kernel, activations stay float."""
        return {
            layer.name: effective(layer, plan[layer.name], self.plain)
            for layer in self._layers
            if layer.name in plan
        }

    def write(self, plan: Plan, path: Path) -> None:
        """Write a candidate."""
        self._save(self._quantized(self._model, plan, self._ranges), path)

    def write_trained(
        self,
        model: onnx.ModelProto,
        plan: Plan,
        weights: Mapping[str, QuantizedWeight],
        path: Path,
    ) -> None:
        """Write a candidate whose weights were trained.

        Args:
            model: the prepared graph of the network that was trained.
            plan: precisions by layer.
            weights: its integers, by layer.
            path: where to.
        """
        ranges = None
        if any(precision.activation == 8 for precision in plan.values()):
            method = self._decided["method"]
            ranges = calibrate(model, self._feeds, (method,))[method]
        made = quantize(model, plan, ranges, reduce_range=self._reduce_range, weights=weights)
        self._save(made, path)

    def errors(self, plan: Plan) -> dict[str, float]:
        """Return the signal-to-noise ratio in dB of each layer's rounded weights, by layer."""
        from onnx import numpy_helper

        tensors = {item.name: item for item in self._model.graph.initializer}
        integers = integer_weights(self._model, plan, reduce_range=self._reduce_range)
        found = {}
        for layer in self._layers:
            if layer.name in integers:
                weight = numpy_helper.to_array(tensors[layer.weight])
                rounded = dequantize(integers[layer.name], layer.channel_axis)
                snr = output_snr([weight], [rounded])
                found[layer.name] = round(min(snr, _LOUDEST), 1)
        return found

    @cached_property
    def _few(self) -> list[Feeds]:
        shapes = [item.type.tensor_type.shape for item in self.plain.graph.input]
        is_fixed = any(shape.dim and shape.dim[0].dim_value > 0 for shape in shapes)
        return first_samples(self._feeds, _SENSITIVITY_SAMPLES, is_fixed)

    @cached_property
    def _decided(self) -> Mapping[str, Any]:
        """Which calibration is used; what the journal says, or what is found out now."""
        record = self._journal.find("calibrated")
        if record is None:
            record = self._journal.append("calibrated", **self._decide())
        tricks = [name for name in ("equalized", "corrected") if record[name]]
        self._report(
            f"calibrated on {sum(len(next(iter(item.values()))) for item in self._feeds)} samples:"
            f" {', '.join([record['method'], *tricks])}"
        )
        return record

    @cached_property
    def _model(self) -> onnx.ModelProto:
        return equalize(self.plain) if self._decided["equalized"] else self.plain

    @cached_property
    def _ranges(self) -> Ranges:
        method = self._decided["method"]
        return calibrate(self._model, self._feeds, (method,))[method]

    def _quantized(
        self, model: onnx.ModelProto, plan: Plan, ranges: Ranges, corrected: bool | None = None
    ) -> onnx.ModelProto:
        if corrected is None:
            corrected = self._decided["corrected"]
        if corrected:
            model = correct_biases(model, plan, ranges, reduce_range=self._reduce_range)
        return quantize(model, plan, ranges, reduce_range=self._reduce_range)

    def _decide(self) -> dict[str, Any]:
        """Try calibrations by the error of the output with 8 bits everywhere, no labels needed."""
        self._report("calibrating")
        plan = dict.fromkeys((layer.name for layer in self._layers), INT8)
        expected = _outputs(self.plain, self._few)
        best: dict[str, Any] = {"method": METHODS[0], "equalized": False, "corrected": False}
        highest = -np.inf
        tried = {}
        for equalized in (False, True):
            model = equalize(self.plain) if equalized else self.plain
            ranges = calibrate(model, self._feeds)
            for method in METHODS:
                for corrected in (False, True):
                    made = self._quantized(model, plan, ranges[method], corrected)
                    snr = output_snr(expected, _outputs(made, self._few))
                    name = [method] + ["equalized"] * equalized + ["corrected"] * corrected
                    tried[" ".join(name)] = round(min(snr, _LOUDEST), 2)
                    if snr > highest + _SMALLEST_GAIN:
                        highest = snr
                        best = {"method": method, "equalized": equalized, "corrected": corrected}
        return {**best, "output_snr_db": tried}

    def _save(self, model: onnx.ModelProto, path: Path) -> None:
        with replacing(path, sync=True) as part:
            part.write_bytes(model.SerializeToString(deterministic=True))


def first_samples(feeds: Sequence[Feeds], samples: int, is_fixed: bool = False) -> list[Feeds]:
    """Return the first inputs, of about so many samples; a batch is cut, but never to nothing.

    Args:
        feeds: inputs by name.
        samples: how many.
        is_fixed: the model takes batches of one size only.
    """
    found: list[Feeds] = []
    count = 0
    for feed in feeds:
        if count >= samples:
            break
        size = len(next(iter(feed.values())))
        is_ragged = len({len(item) for item in feed.values()}) > 1
        is_whole = is_fixed or is_ragged or size <= samples - count
        found.append(feed if is_whole else {k: v[: samples - count] for k, v in feed.items()})
        count += size
    return found


def _outputs(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> list[Any]:
    """Return the outputs of a model in memory, one array an output of each batch."""
    session = open_session(model)
    return [array for feed in feeds for array in session.run(None, dict(feed))]
