"""TensorFlow operators that tf2onnx lacks, written with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def _erfc(context: Any, node: Any, name: str, arguments: Sequence[Any]) -> None:
    """``erfc(x) = 1 - erf(x)``, which the gelu of Keras is made of."""
    output = node.output[0]
    dtype, shape = context.get_dtype(output), context.get_shape(output)
    readers = context.find_output_consumers(output)
    node.type = "Erf"
    from tf2onnx import utils

    one = context.make_const(f"{name}_one", np.array(1, utils.map_onnx_to_numpy_type(dtype)))
    rest = context.make_node(
        "Sub", [one.output[0], output], name=f"{name}_rest", dtypes=[dtype], shapes=[shape]
    )
    context.replace_all_inputs(output, rest.output[0], ops=readers)
    if output in context.outputs:
        context.outputs[context.outputs.index(output)] = rest.output[0]


HANDLERS: Mapping[str, tuple[Callable[..., None], list[Any]]] = {"Erfc": (_erfc, [])}
"""``custom_op_handlers`` of tf2onnx."""
