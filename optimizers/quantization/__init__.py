"""Quantization of ONNX graphs: integers for weights and activations, layer by layer.

``prepare`` a float graph, ``calibrate`` it once, then ``quantize`` it with as many plans as are
tried. ``sensitivities`` says beforehand what a layer's precision costs; ``equalize`` and
``correct_biases`` make it cost less.
"""

from __future__ import annotations

from .bias_correction import correct_biases
from .calibration import METHODS, Ranges, calibrate
from .equalization import equalize
from .layers import QuantLayer, quantizable_layers
from .plan import FLOAT, INT8, WEIGHT_BITS, Plan, Precision, weight_bytes
from .prepare import prepare
from .qdq import integer_weights, quantize
from .sensitivity import output_snr, sensitivities
from .weights import QuantizedWeight, dequantize, quantize_weight

__all__ = [
    "FLOAT",
    "INT8",
    "METHODS",
    "WEIGHT_BITS",
    "Plan",
    "Precision",
    "QuantLayer",
    "QuantizedWeight",
    "Ranges",
    "calibrate",
    "correct_biases",
    "dequantize",
    "equalize",
    "integer_weights",
    "output_snr",
    "prepare",
    "quantizable_layers",
    "quantize",
    "quantize_weight",
    "sensitivities",
    "weight_bytes",
]
