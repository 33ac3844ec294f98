"""Which layers are quantized, and to how many bits: the user's rules and table of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...errors import UsageError
from ...specs.hints import did_you_mean
from .layers import QuantLayer
from .plan import FLOAT, WEIGHT_BITS, Precision

Bits = Literal["8", "4", "2", "mixed"]

FORMAT_BITS = {"onnx": WEIGHT_BITS, "tflite": (4, 8, 16, 32)}
"""Bits of a weight, by format. LiteRT has 2-bit weights, but its convolutions crash with them."""
_OPERATOR_BITS = {
    "DEPTHWISE_CONV_2D": (8, 16, 32),
    "TRANSPOSE_CONV": (8, 16, 32),
    "BATCH_MATMUL": (8, 32),
}
"""Bits of the operators of LiteRT that have not all those of the format."""


@dataclass(frozen=True)
class LayerRules:
    """What the user says of layers.

    Attributes:
        bits: of weights that nothing else is said of.
        conv11: quantize 1x1 convolutions.
        group_conv: quantize grouped convolutions.
        skip: indices of layers that stay float.
        skip_ratio: share of the first layers that stay float.
        layers: bits by name of the layer.
        only_named: layers that ``layers`` does not name stay float.
        binding: what the rules say is the user's choice: the search changes no layer.
    """

    bits: Bits = "8"
    conv11: bool = True
    group_conv: bool = True
    skip: tuple[int, ...] = ()
    skip_ratio: float = 0.0
    layers: Mapping[str, int] = field(default_factory=dict)
    only_named: bool = False
    binding: bool = False


@dataclass(frozen=True)
class Choice:
    """What rules make of the layers of a model.

    Attributes:
        free: layers whose precision the search chooses, in their order.
        fixed: the precision of those that the user chose, by name.
        reasons: why a fixed layer is as it is, by name.
    """

    free: tuple[QuantLayer, ...]
    fixed: Mapping[str, Precision]
    reasons: Mapping[str, str]


def precision_of(bits: int, is_fast: bool = False) -> Precision:
    """Return the precision that a layer gets for a number of bits.

    8 bits quantize activations, too. Below, weights alone are: activations in 8 bits would make the
    result worse and no smaller. Where time counts, they are quantized all the same.

    Args:
        bits: of the weights.
        is_fast: time is what counts.
    """
    return Precision(bits, 8 if bits == 8 or (bits < 8 and is_fast) else 32)


def possible_bits(layer: QuantLayer, format_: str) -> tuple[int, ...]:
    """Return the bits that a format has for the weights of a layer, ascending.

    Args:
        layer: of a graph of that format.
        format_: ``onnx`` or ``tflite``.
    """
    return _OPERATOR_BITS.get(layer.op_type, FORMAT_BITS[format_])


def choose(
    layers: Sequence[QuantLayer], rules: LayerRules, is_fast: bool = False, format_: str = "onnx"
) -> Choice:
    """Apply rules to the layers of a model.

    Args:
        layers: in the traversal of the graph.
        rules: the user's.
        is_fast: time is what counts.
        format_: what ships; it may have fewer types than there are.

    Raises:
        UsageError: a layer does not exist, or the format has no type of so many bits for it.
    """
    named = {layer.name: layer for layer in layers}
    for name, bits in rules.layers.items():
        if name not in named:
            raise UsageError(
                f"layer {name!r}: there is no such layer; found {len(layers)} that can be"
                " quantized",
                hint=did_you_mean(name, named) or "--list-layers prints them",
            )
        _check_bits(named[name], bits, format_)
    for index in rules.skip:
        if index >= len(layers):
            raise UsageError(
                f"skip_layers: found {index}; expected an index of 0 to {len(layers) - 1}",
                hint="--list-layers prints them",
            )
    first = round(rules.skip_ratio * len(layers))
    free: list[QuantLayer] = []
    fixed: dict[str, Precision] = {}
    reasons: dict[str, str] = {}
    for layer in layers:
        reason = _why_float(layer, rules, first)
        if layer.name in rules.layers:
            fixed[layer.name] = precision_of(rules.layers[layer.name], is_fast)
            reasons[layer.name] = "its bits are given"
        elif reason is not None:
            fixed[layer.name], reasons[layer.name] = FLOAT, reason
        elif rules.binding:
            _check_bits(layer, int(rules.bits), format_)
            fixed[layer.name] = precision_of(int(rules.bits), is_fast)
            reasons[layer.name] = "by the rules of the spec"
        else:
            free.append(layer)
    if free and rules.bits != "mixed" and int(rules.bits) not in FORMAT_BITS[format_]:
        _check_bits(free[0], int(rules.bits), format_)
    return Choice(tuple(free), fixed, reasons)


def _check_bits(layer: QuantLayer, bits: int, format_: str) -> None:
    possible = possible_bits(layer, format_)
    if bits not in possible:
        operator = "" if possible == FORMAT_BITS[format_] else f" ({layer.op_type})"
        raise UsageError(
            f"layer {layer.name!r}{operator}: found {bits} bits, which {format_} has no type for;"
            f" expected one of {', '.join(map(str, possible))}",
            hint="--format onnx has a type for it" if bits in FORMAT_BITS["onnx"] else None,
        )


def _why_float(layer: QuantLayer, rules: LayerRules, first: int) -> str | None:
    if layer.index in rules.skip:
        return "skip_layers names it"
    if layer.index < first:
        return f"skip_layers_ratio leaves the first {first} layers"
    if layer.is_pointwise and not rules.conv11:
        return "1x1 convolutions stay as they are"
    if layer.is_grouped and not rules.group_conv:
        return "grouped convolutions stay as they are"
    return "layers that are not named stay as they are" if rules.only_named else None
