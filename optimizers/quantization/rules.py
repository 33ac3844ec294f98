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


def choose(
    layers: Sequence[QuantLayer], rules: LayerRules, is_fast: bool = False, format_: str = "onnx"
) -> Choice:
    """Apply rules to the layers of a model.

    Args:
        layers: in the traversal of the graph.
        rules: the user's.
        is_fast: time is what counts.
        format_: what ships, for messages.

    Raises:
        UsageError: a layer does not exist, or a number of bits does not.
    """
    named = {layer.name: layer for layer in layers}
    for name, bits in rules.layers.items():
        if name not in named:
            raise UsageError(
                f"layer {name!r}: there is no such layer; found {len(layers)} that can be"
                " quantized",
                hint=did_you_mean(name, named) or "--list-layers prints them",
            )
        if bits not in WEIGHT_BITS:
            raise UsageError(
                f"layer {name!r}: found {bits} bits, which {format_} has no type for; expected one"
                f" of {', '.join(map(str, WEIGHT_BITS))}"
            )
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
            fixed[layer.name] = precision_of(int(rules.bits), is_fast)
            reasons[layer.name] = "by the rules of the spec"
        else:
            free.append(layer)
    return Choice(tuple(free), fixed, reasons)


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
