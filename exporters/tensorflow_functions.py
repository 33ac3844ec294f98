"""Keras models, SavedModels and GraphDefs as functions of tensors by name, for converters."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..specs.tensors import TensorSpec
from .base import Job, Variant

_IDENTIFIER = re.compile(r"[A-Za-z]\w*", re.ASCII)


def safe_names(names: Sequence[str]) -> dict[str, str]:
    """Return the name that converters can keep of every name: they make it a Python parameter."""
    return {
        name: name
        if _IDENTIFIER.fullmatch(name) and not keyword.iskeyword(name)
        else f"ingot_input_{index}"
        for index, name in enumerate(names)
    }


def signature(variant: Variant, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the ``tf.TensorSpec`` of every input, by its name from :func:`safe_names`."""
    return {names[spec.name]: _tensor(spec, names[spec.name]) for spec in variant.inputs}


def _tensor(spec: TensorSpec, name: str) -> Any:
    import tensorflow

    shape = None
    if spec.shape is not None:
        shape = [dim if isinstance(dim, int) else None for dim in spec.shape]
    return tensorflow.TensorSpec(shape, spec.dtype, name=name)


def positional_function(job: Job, variant: Variant) -> tuple[Any, list[Any]]:
    """Return a ``tf.function`` of the inputs in order, and its signature; it returns a dict.

    Constants that it captures (those of a Keras ``Normalization``, say) are in it: a converter
    would take them for inputs.
    """
    import tensorflow
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = _function(job)
    specs = [spec.name for spec in variant.inputs]
    wanted = [spec.name for spec in variant.outputs]

    def serve(*tensors: Any) -> dict[str, Any]:
        returned = function(dict(zip(specs, tensors, strict=True)))
        # Identities: an output may be an input, or come twice.
        return {name: tensorflow.identity(returned[name]) for name in wanted}

    served = tensorflow.function(serve)
    tensors = list(signature(variant, safe_names(specs)).values())
    concrete = served.get_concrete_function(*tensors)
    if all(tensor.dtype == tensorflow.resource for tensor in concrete.captured_inputs):
        return served, tensors
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    order = [tensor.name.partition(":")[0] for tensor in frozen.inputs]
    names = [tensor.name for tensor in tensors]

    def constant(*feeds: Any) -> dict[str, Any]:
        by_name = dict(zip(names, feeds, strict=True))
        # A function that is frozen has lost its structure, whose keys come sorted.
        returned = frozen(*[by_name[name] for name in order])
        return dict(zip(sorted(wanted), returned, strict=True))

    return tensorflow.function(constant), tensors


def concrete_function(job: Job, variant: Variant, names: Mapping[str, str]) -> Any:
    """Return a ``ConcreteFunction`` of the shapes of a variant.

    It takes its inputs by the names from :func:`safe_names`, and returns a dict by output name.
    """
    import tensorflow

    function = _function(job)
    wanted = [spec.name for spec in variant.outputs]

    def serve(**feeds: Any) -> dict[str, Any]:
        returned = function({name: feeds[made] for name, made in names.items()})
        # Identities: an output may be an input, or come twice.
        return {name: tensorflow.identity(returned[name]) for name in wanted}

    return tensorflow.function(serve).get_concrete_function(**signature(variant, names))


def _function(job: Job) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    model: Any = job.model
    if job.source.framework == "keras":
        call: Callable[[dict[str, Any]], Mapping[str, Any]] = model.call_tensors
        return call
    if job.source.path is not None and job.source.path.is_dir():
        signature = model.native.signatures["serving_default"]
        return lambda feeds: signature(**feeds)
    import tensorflow

    v1 = tensorflow.compat.v1
    graph_def = model.frozen_graph_def()
    nodes = {spec.name: model.nodes[spec.name].name for spec in (*model.inputs, *model.outputs)}
    inputs = [spec.name for spec in model.inputs]
    outputs = [spec.name for spec in model.outputs]

    def imported(feeds: dict[str, Any]) -> Mapping[str, Any]:
        values = v1.import_graph_def(
            graph_def,
            input_map={nodes[name]: feeds[name] for name in inputs},
            return_elements=[nodes[name] for name in outputs],
            name="",
        )
        return dict(zip(outputs, values, strict=True))

    return imported
