"""What a model takes and returns, as far as it can be found without running it.

This asks more than :func:`open_model` does: parameters of code, the example inputs that a traced
TorchScript file carries, and the ends of a GraphDef. None of it limits how the model is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError, SpecError
from ..specs.dtypes import canonical_dtype
from ..specs.tensors import TensorSpec
from . import open_model
from .base import LoadOptions, ModelSource


@dataclass(frozen=True)
class Signature:
    """What a model says of itself.

    Attributes:
        inputs: what it takes; dtype and shape are None where it does not say.
        outputs: what it returns; empty when only a run tells.
        node_name_mapping: the tensor of the graph for every input and output (GraphDef).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()
    node_name_mapping: Mapping[str, str] | None = None


def read_signature(source: ModelSource) -> Signature:
    """Load a model and read its signature; the user's code runs when the model is code.

    Raises:
        ModelError: it cannot be loaded, or takes something that no tensor spec can say.
        MissingDependencyError: its framework is not installed.
    """
    if source.framework in ("torch", "python"):
        with_none = replace(source, inputs=(), outputs=())
        native = open_model(with_none).native
        return Signature(_parameters(getattr(native, "forward", native)))
    if source.framework == "torchscript":
        return Signature(_traced(source))
    if source.framework == "tensorflow" and source.path is not None and source.path.is_file():
        return _graph(source)
    try:
        model = open_model(source)
    except SpecError as error:
        raise ModelError(f"{source.label}: {error.message}", hint=error.hint) from error
    return Signature(model.inputs, model.outputs)


def _parameters(function: Any) -> tuple[TensorSpec, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(
        TensorSpec(parameter.name, None, None, parameter.default is not parameter.empty)
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    )


def _traced(source: ModelSource) -> tuple[TensorSpec, ...]:
    """The arguments of ``forward``, with types and shapes of what it was traced with."""
    from .torchscript import load

    module = load(replace(source, inputs=(), outputs=()), LoadOptions()).native
    arguments = module.forward.schema.arguments[1:]
    if len(arguments) == 1 and arguments[0].type.kind() == "DictType":
        return ()  # one dict of all inputs: only its callers know their names
    examples = _examples(source)
    specs = []
    for argument in arguments:
        kind = str(argument.type)
        if kind == "List[str]":
            specs.append(TensorSpec(argument.name, "string", None))
        elif kind == "Tensor" or (kind == "Optional[Tensor]" and argument.has_default_value()):
            dtype, shape = examples.get(argument.name, (None, None))
            optional = argument.has_default_value()
            specs.append(TensorSpec(argument.name, dtype, shape, optional))
        elif not argument.has_default_value():
            raise ModelError(
                f"{source.label}: forward takes {argument.name!r} of type {kind};"
                " an input of a spec is a tensor (or a list of strings)",
                hint="wrap the module in one whose forward takes tensors only",
            )
    return tuple(specs)


def _examples(source: ModelSource) -> dict[str, tuple[str | None, tuple[int, ...] | None]]:
    """Read the types and shapes of the inputs that a module was traced with, by argument."""
    import torch

    try:
        module = torch.jit.load(str(source.path), map_location="cpu", _restore_shapes=True)
        values = list(module.forward.graph.inputs())[1:]
        arguments = module.forward.schema.arguments[1:]
    except (AttributeError, RuntimeError):
        return {}  # a scripted or frozen module has none; the user has to say
    found: dict[str, tuple[str | None, tuple[int, ...] | None]] = {}
    for argument, value in zip(arguments, values, strict=False):
        if value.type().kind() != "TensorType":
            continue
        sizes, dtype = value.type().sizes(), value.type().dtype()
        if sizes is not None and dtype is not None and 0 not in sizes:
            name = str(dtype).removeprefix("torch.")
            try:
                found[argument.name] = canonical_dtype(name), tuple(sizes)
            except SpecError as error:
                raise ModelError(
                    f"{source.label}: input {argument.name!r}: {error.reason}"
                ) from error
    return found


_NO_RESULT = frozenset({"NoOp", "Const", "Placeholder", "PlaceholderWithDefault", "Assert"})


def _graph(source: ModelSource) -> Signature:
    """Find the placeholders of a GraphDef, and the operations whose results nothing else takes."""
    from .tensorflow import import_tensorflow, read_graph_def

    tensorflow = import_tensorflow()
    graph = tensorflow.Graph()
    with graph.as_default():
        definition = read_graph_def(source.path, source.label, tensorflow)
        try:
            tensorflow.compat.v1.import_graph_def(definition, name="")
        except Exception as error:
            from .base import first_line

            raise ModelError(
                f"{source.label}: TensorFlow cannot import the graph: {first_line(error)}"
            ) from error
    operations = graph.get_operations()
    taken: list[str] = []
    mapping: dict[str, str] = {}

    def spec(tensor: Any, optional: bool = False) -> TensorSpec:
        name = _short_name(tensor, taken)
        taken.append(name)
        mapping[name] = tensor.name
        try:
            dtype = canonical_dtype(tensor.dtype.base_dtype.name)
        except SpecError as error:
            raise ModelError(f"{source.label}: {tensor.name}: {error.reason}") from error
        shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
        return TensorSpec(name, dtype, shape, optional)

    inputs = [
        spec(operation.outputs[0], operation.type == "PlaceholderWithDefault")
        for operation in operations
        if operation.type in ("Placeholder", "PlaceholderWithDefault")
    ]
    outputs = [
        spec(tensor)
        for operation in operations
        if operation.type not in _NO_RESULT
        and not any(tensor.consumers() for tensor in operation.outputs)
        for tensor in operation.outputs
        if tensor.dtype.name not in ("resource", "variant")
    ]
    if not outputs:
        raise ModelError(f"{source.label}: found no operation whose result is an output")
    return Signature(tuple(inputs), tuple(outputs), mapping)


def _short_name(tensor: Any, taken: list[str]) -> str:
    """Return the last part of a node's name; more of it when that is taken."""
    full, _, index = tensor.name.rpartition(":")
    for name in (full.rpartition("/")[2], full.replace("/", "_")):
        name = name if index == "0" else f"{name}_{index}"
        if name not in taken:
            return name
    return f"{full.replace('/', '_')}_{len(taken)}"
