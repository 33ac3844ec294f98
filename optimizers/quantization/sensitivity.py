"""How much of the network's output is lost when one layer is quantized; no labels needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, ModelError, UsageError
from ...frameworks.base import first_line
from .calibration import Batch, Ranges, check_batches, open_session
from .layers import QuantLayer
from .plan import FLOAT, Precision
from .regions import effective, regions
from .weights import dequantize, quantize_weight

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]


def sensitivities(
    model: onnx.ModelProto,
    layers: Sequence[QuantLayer],
    ranges: Ranges | None,
    batches: Sequence[Batch],
    precisions: Iterable[Precision],
    *,
    reduce_range: bool = False,
    threads: int = 1,
) -> dict[str, dict[Precision, float]]:
    """Return the signal-to-noise ratio in dB of the output with one layer quantized, by layer.

    The noise of several layers adds up, nearly (see :mod:`.allocation`), so that these numbers say
    what a plan costs before it is tried. The weights are inputs of the network that is run, and are
    rounded outside of it: only a layer's quantized activations need a network of their own. So one
    layer and precision costs one run over the batches.

    Args:
        model: see :func:`.prepare.prepare`.
        layers: those to measure, of this model.
        ranges: of the activations; not needed when all precisions leave them float.
        batches: some typical inputs; 32 samples will do.
        precisions: to measure. One that the layer cannot have (see :func:`.regions.effective`) is
            measured as what it would get in its place.
        reduce_range: weights of 7 instead of 8 bits.
        threads: of ONNX Runtime.

    Returns:
        dB by precision, by layer; infinite where the output stays as it is.

    Raises:
        InputError: there is no batch, or one does not fit the model.
        UsageError: quantized activations are asked for, but not calibrated.
    """
    check_batches(batches)
    wanted = tuple(dict.fromkeys(precisions))
    probe = _Probe(model, layers, batches, threads)
    expected = probe.run({})
    found: dict[str, dict[Precision, float]] = {}
    for layer in layers:
        measured: dict[Precision, float] = {}
        for precision in wanted:
            actual = effective(layer, precision, model)
            if actual not in measured:
                weight = _rounded(probe.weights[layer.name], layer, actual, reduce_range)
                session = None
                if actual.activation == 8:
                    session = probe.with_activations(layer, ranges)
                got = expected if actual == FLOAT else probe.run({layer.name: weight}, session)
                measured[actual] = output_snr(expected, got)
            measured[precision] = measured[actual]
        probe.forget()
        found[layer.name] = {precision: measured[precision] for precision in wanted}
    return found


def output_snr(reference: Sequence[Array], outputs: Sequence[Array]) -> float:
    """Return the signal-to-noise ratio of outputs in dB: 10 log10(sum x^2 / sum (x - y)^2).

    Of several outputs the ratios of noise to signal are averaged; those that are not floats, or are
    nothing but zeros in the reference, do not count. NaN and infinity count as noise without bound.

    Args:
        reference: what the float network returns, one array an output (and batch).
        outputs: what the other one returns, in the same order and shapes.

    Returns:
        dB; infinite where they are equal.
    """
    ratios = []
    for expected, got in zip(reference, outputs, strict=True):
        if expected.dtype.kind != "f":
            continue
        signal = expected.astype(np.float64)
        energy = float(np.vdot(signal, signal))
        if energy > 0:
            difference = got.astype(np.float64) - signal
            ratios.append(float(np.vdot(difference, difference)) / energy)
    noise = sum(ratios) / len(ratios) if ratios else 0.0
    if not math.isfinite(noise):
        return -math.inf
    return -10 * math.log10(noise) if noise > 0 else math.inf


class _Probe:
    """A network whose weights are inputs, run on the same batches again and again."""

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[QuantLayer],
        batches: Sequence[Batch],
        threads: int,
    ) -> None:
        from onnx import TensorProto, helper, numpy_helper

        from .stored_weights import taken_names

        self._threads = threads
        self._batches = batches
        self._original = model
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.weights = {
            layer.name: np.ascontiguousarray(numpy_helper.to_array(tensors[layer.weight]))
            for layer in layers
        }
        self._inputs = {layer.name: f"{layer.node}_weight_{layer.index}" for layer in layers}
        probe = type(model)()
        probe.CopyFrom(model)
        nodes = {node.name: node for node in probe.graph.node}
        for layer in layers:
            name = self._inputs[layer.name]
            nodes[layer.node].input[1] = name
            info = helper.make_tensor_value_info(name, TensorProto.FLOAT, layer.shape)
            probe.graph.input.append(info)
        taken = taken_names(probe.graph)
        kept = [tensor for tensor in tensors.values() if tensor.name in taken]
        del probe.graph.initializer[:]
        probe.graph.initializer.extend(kept)
        self._probe = probe
        self._session = open_session(probe, threads)
        self._last: tuple[str, Any] | None = None

    def run(self, weights: dict[str, Array], session: Any = None) -> list[Array]:
        """Return the outputs, one array an output and batch, with other weights of some layers."""
        session = session or self._session
        feeds = {self._inputs[name]: array for name, array in (self.weights | weights).items()}
        return list(self._outputs(session, feeds))

    def _outputs(self, session: Any, weights: dict[str, Array]) -> Iterator[Array]:
        names = [value.name for value in self._original.graph.input]
        for number, batch in enumerate(self._batches):
            try:
                feeds = {name: np.asarray(batch[name]) for name in names}
                yield from (np.asarray(array) for array in session.run(None, feeds | weights))
            except Exception as error:
                raise InputError(
                    f"calibration batch {number}: the model cannot take it: {first_line(error)}"
                ) from error

    def with_activations(self, layer: QuantLayer, ranges: Ranges | None) -> Any:
        """Return a session in which what goes into a layer, and comes out, passes through uint8."""
        if self._last is not None and self._last[0] == layer.name:
            return self._last[1]
        if ranges is None:
            raise UsageError(
                f"{layer.name}: its quantized activations are to be measured, but they are not"
                " calibrated"
            )
        changed = type(self._probe)()
        changed.CopyFrom(self._probe)
        node = next(node for node in changed.graph.node if node.name == layer.node)
        for tensor in regions(self._original, [layer]).tensors:
            if tensor not in ranges.limits:
                raise ModelError(f"{layer.name}: the activation {tensor!r} is not calibrated")
            takers = [node] if tensor == node.input[0] else list(changed.graph.node)
            _insert_pair(changed, tensor, takers, ranges)
        session = open_session(changed, self._threads)
        self._last = (layer.name, session)
        return session

    def forget(self) -> None:
        """Close the session of the last layer."""
        self._last = None


def _insert_pair(
    model: onnx.ModelProto, tensor: str, takers: Sequence[Any], ranges: Ranges
) -> None:
    """Let nodes take a tensor by way of uint8; an output of the network, too."""
    from onnx import helper, numpy_helper

    low, _ = ranges.limits[tensor]
    scale = np.float32(ranges.scale(tensor) or 1)
    zero = np.uint8(np.clip(np.rint(-min(low, 0.0) / scale), 0, 255))
    names = [f"{tensor}_probe_{part}" for part in ("scale", "zero", "q", "dq")]
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale), names[0]))
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero), names[1]))
    for node in takers:
        node.input[:] = [names[3] if name == tensor else name for name in node.input]
    outputs = {value.name for value in graph.output}
    source, result = tensor, names[3]
    if tensor in outputs and len(takers) != 1:
        source = f"{tensor}_probe_float"
        for node in graph.node:
            node.output[:] = [source if name == tensor else name for name in node.output]
            node.input[:] = [tensor if name == result else name for name in node.input]
        result = tensor
    first = helper.make_node("QuantizeLinear", [source, *names[:2]], [names[2]])
    second = helper.make_node("DequantizeLinear", [names[2], *names[:2]], [result])
    place = 0
    for index, node in enumerate(graph.node):
        if source in node.output:
            place = index + 1
    graph.node.insert(place, first)
    graph.node.insert(place + 1, second)


def _rounded(weight: Array, layer: QuantLayer, precision: Precision, reduce_range: bool) -> Array:
    if precision.weight == 32:
        return weight
    if precision.weight == 16:
        with np.errstate(over="ignore"):
            return weight.astype(np.float16).astype(np.float32)
    integers = quantize_weight(
        weight, precision.weight, layer.channel_axis, reduce_range=reduce_range
    )
    return dequantize(integers, layer.channel_axis)
