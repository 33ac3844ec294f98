"""The last steps of every ONNX file: names, shapes, precision, metadata, checks, writing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import CheckError, ModelError, UsageError
from ..frameworks.base import first_line
from ..frameworks.layers import LARGEST_ONNX, NAME_SCOPES
from ..frameworks.onnx import external_data_files
from ..specs.tensors import Dimension
from .base import Job, Variant, converting

_REDUCE_TAKES_AXES = 18
"""The opset from which on reductions other than ReduceSum have axes as an input, and a flag."""

_INITIALIZERS_APART = 4
"""The IR version from which on initializers are not among the inputs of the graph."""


@dataclass(frozen=True)
class Converted:
    """What a converter made: an ``onnx_ir.Model``, and the names of its tensors, in order."""

    model: Any
    inputs: Sequence[str]
    outputs: Sequence[str]


def read_model(path: Path, label: str) -> Any:
    """Read an ONNX file as an ``onnx_ir.Model``; its inputs are those without an initializer.

    Weights beside it of 2 GiB and more stay on disk until they are used.

    Raises:
        ModelError: it cannot be read, or its weights lie outside of its folder.
    """
    import onnx_ir

    external_data_files(path)
    try:
        model = onnx_ir.load(path)
        if _weight_bytes(model) <= LARGEST_ONNX:
            onnx_ir.external_data.load_to_model(model)
        _load_attributes(model)
    except Exception as error:
        raise ModelError(f"{label}: not a readable ONNX file: {first_line(error)}") from error
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)
    return model


def _load_attributes(model: Any) -> None:
    """Load tensors beside the file that are attributes of nodes: nothing else would."""
    import onnx_ir

    for node in _nodes(model):
        for name, attribute in list(node.attributes.items()):
            if isinstance(attribute.value, onnx_ir.ExternalTensor):
                tensors = onnx_ir.external_data.convert_tensors_from_external([attribute.value])
                node.attributes[name] = onnx_ir.AttrTensor(name, tensors[0])


def deserialize(proto: Any) -> Any:
    """Return an ``onnx.ModelProto`` as an ``onnx_ir.Model``."""
    import onnx_ir

    return onnx_ir.serde.deserialize_model(proto)


def finish(
    converted: Converted, job: Job, variant: Variant, path: Path
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write the ONNX file of a variant, and check it.

    Returns:
        the files beside it that hold its weights, and what the user should know.

    Raises:
        ModelError: an operator is not in the opset, or the file fails the checker.
        UsageError: its precision and size do not go together.
    """
    import onnx_ir

    label = job.source.label
    model = converted.model.clone() if hasattr(converted.model, "clone") else converted.model
    _name_tensors(model, converted, variant, label)
    _set_shapes(model, variant)
    with converting(label, "ONNX's version converter"):
        model = _at_opset(model, job, label)
    _check_operators(model, label)
    with converting(label, "onnxscript's optimizer"):
        _simplify(model, job, variant)
    _set_shapes(model, variant)
    notes: tuple[str, ...] = ()
    if job.precision == "fp16":
        from .onnx_fp16 import to_fp16

        size = _weight_bytes(model)
        if size > LARGEST_ONNX:
            raise UsageError(
                f"{label}: {size >> 20} MiB of weights; fp16 needs an ONNX file below 2 GiB"
            )
        with converting(label, "onnxconverter-common"):
            model, notes = to_fp16(model, keep_io=not job.fp16_io)
    _set_metadata(model, job)
    _set_ir_version(model)
    companions: tuple[Path, ...] = ()
    with converting(label, "onnx_ir"):
        if _weight_bytes(model) > LARGEST_ONNX:
            companions = (path.with_name(path.name + ".data"),)
            onnx_ir.save(model, path, external_data=companions[0].name)
        else:
            # Of a larger source, which has lost weights since.
            onnx_ir.external_data.load_to_model(model)
            onnx_ir.save(model, path)
    _check_file(path)
    return companions, notes


def _name_tensors(model: Any, converted: Converted, variant: Variant, label: str) -> None:
    """Give inputs and outputs the names and the order of the spec.

    Raises:
        ModelError: the file lacks one of them.
    """
    graph = model.graph
    for kind, values, names, specs in (
        ("input", graph.inputs, converted.inputs, variant.inputs),
        ("output", graph.outputs, converted.outputs, variant.outputs),
    ):
        if len(values) != len(names):
            found = ", ".join(str(value.name) for value in values) or "none"
            made = f"made {len(values)} {kind}s of {len(names)}"
            hint = None
            if len(values) < len(names):
                # A converter drops an input that the outputs do not depend on.
                made = f"kept {len(values)} of {len(names)} {kind}s"
                hint = f"an {kind} without effect has to go from the spec"
            raise ModelError(
                f"{label}: the converter {made} ({found}); expected {', '.join(names)}", hint=hint
            )
        taken = _value_names(graph)
        by_name = dict(zip(names, values, strict=True))
        for name, value in by_name.items():
            if value.name != name and name in taken:
                _rename_aside(name, taken)
            value.name = name
        for spec in specs:
            if spec.name not in by_name:
                raise ModelError(
                    f"{label}: the model has no {kind} {spec.name!r}; found {', '.join(by_name)}"
                )
        ordered = [by_name[spec.name] for spec in specs]
        values.clear()
        values.extend(ordered)


def _value_names(graph: Any) -> dict[str, Any]:
    found = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        found |= {value.name: value for value in node.outputs if value.name}
    return found


def _rename_aside(name: str, taken: dict[str, Any]) -> None:
    other = next(f"{name}_{n}" for n in range(1, 1000) if f"{name}_{n}" not in taken)
    value = taken.pop(name)
    value.name = other
    taken[other] = value


def _set_shapes(model: Any, variant: Variant) -> None:
    """Write the spec's sizes and symbols into the tensors."""
    import onnx_ir

    symbols: dict[str, Dimension] = {}
    for values, specs in (
        (model.graph.inputs, variant.inputs),
        (model.graph.outputs, variant.outputs),
    ):
        by_name = {spec.name: spec for spec in specs}
        for value in values:
            spec = by_name.get(value.name)
            if spec is None or spec.shape is None:
                continue
            found = value.shape
            dims: list[Any] = []
            for axis, dim in enumerate(spec.shape):
                kept = found[axis] if found is not None and len(found) == len(spec.shape) else None
                # A size that the converter derived says more than "any".
                dims.append(kept if dim is None and kept is not None else dim)
                symbol = getattr(kept, "value", None)
                if dim is not None and isinstance(symbol, str) and symbol.isidentifier():
                    symbols.setdefault(symbol, dim)
            value.shape = onnx_ir.Shape(dims)
    if any(symbol != dim for symbol, dim in symbols.items()):
        for node in model.graph:
            for value in node.outputs:
                if value.shape is not None:
                    value.shape = onnx_ir.Shape([_renamed(dim, symbols) for dim in value.shape])


def _renamed(dim: Any, symbols: Mapping[str, Dimension]) -> Any:
    """Return a dimension with the converter's symbols (``s77``) replaced by the spec's."""
    text = getattr(dim, "value", None)
    if not isinstance(text, str):
        return dim
    if text in symbols:
        return symbols[text]
    return re.sub(r"\w+", lambda match: str(symbols.get(match.group(), match.group())), text)


def _at_opset(model: Any, job: Job, label: str) -> Any:
    """Convert a model to the opset asked for.

    Raises:
        ModelError: an operator is not in that opset, or there is no conversion to it.
    """
    import onnx_ir
    from onnxscript import version_converter

    found = model.opset_imports.get("", 0)
    wanted = job.opset
    if wanted is None or wanted == found:
        return model
    missing = _missing_operator(model, wanted)
    if missing is not None:
        raise ModelError(f"{label}: {missing}")
    if wanted < _REDUCE_TAKES_AXES:
        for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
            # ONNX's converter keeps it where it says nothing, and the checker refuses it.
            flag = node.attributes.get("noop_with_empty_axes")
            if flag is not None and flag.value == 0:
                del node.attributes["noop_with_empty_axes"]
    version_converter.convert_version(model, target_version=wanted, fallback=True)
    if model.opset_imports.get("") != wanted:
        raise ModelError(
            f"{label}: the ONNX file of opset {found} cannot be converted to opset {wanted}",
            hint=f"--opset {found}, or leave --opset out",
        )
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        node.version = None
    return model


def _nodes(model: Any) -> Iterator[Any]:
    import onnx_ir

    yield from onnx_ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from onnx_ir.traversal.RecursiveGraphIterator(function.graph)


def _missing_operator(model: Any, opset: int) -> str | None:
    """Say which operator of a model an opset lacks, where it is, and which opset has it."""
    import onnx

    versions: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, []).append(schema.since_version)
    own = {function.name for function in model.functions.values()}
    for node in _nodes(model):
        if node.domain not in ("", "ai.onnx") or node.op_type in own:
            continue
        lowest = min(versions.get(node.op_type, [0]))
        if lowest == 0:
            return (
                f"the operator {node.op_type} (layer {layer_of(node)}) has no counterpart in ONNX"
            )
        if lowest > opset:
            return (
                f"the operator {node.op_type} (layer {layer_of(node)}) is not in opset {opset};"
                f" the lowest that has it is {lowest}"
            )
    return None


def layer_of(node: Any) -> str:
    """Return the module that a node comes from, where its converter says so, else its name."""
    import ast

    text = node.metadata_props.get(NAME_SCOPES)
    if text:
        scopes = [scope for scope in ast.literal_eval(text)[:-1] if scope]
        if scopes:
            return str(scopes[-1])
    return str(node.name or node.outputs[0].name)


def _check_operators(model: Any, label: str) -> None:
    missing = _missing_operator(model, model.opset_imports.get("", 0))
    if missing is not None:
        raise ModelError(
            f"{label}: {missing}",
            hint="write it with other operators, or package the model as it is: ingot package",
        )


def optimize(model: Any, *, keep_batch_norm: bool) -> None:
    """Fold constants, rewrite patterns and drop what is unused, in place.

    onnxscript's patterns fold BatchNorm: where it is to stay, none of them is used.
    """
    from onnxscript import optimizer

    if keep_batch_norm:
        optimizer.inline(model)
        optimizer.fold_constants(model)
        optimizer.remove_unused_nodes(model)
    else:
        optimizer.optimize(model)


def _simplify(model: Any, job: Job, variant: Variant) -> None:
    """Fold constants (shapes that a fixed resolution makes known, too) and drop what is unused."""
    from onnxscript import rewriter

    if job.source.framework == "onnx" or variant.resolution is not None or variant.is_fixed:
        optimize(model, keep_batch_norm=not job.bn_fusion)
    if job.bn_fusion and any(node.op_type == "BatchNormalization" for node in _nodes(model)):
        from onnxscript.rewriter.rules import common

        rules = (
            common.fuse_batchnorm_into_conv_rule,
            common.fuse_batchnorm_into_conv_transpose_rule,
            common.fuse_batchnorm_into_gemm_rule,
        )
        rewriter.rewrite(model, pattern_rewrite_rules=rules)


def _weight_bytes(model: Any) -> int:
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _set_ir_version(model: Any) -> None:
    """Raise the IR version to one that the opset fits, and that has initializers apart."""
    from onnx import helper

    opsets = [helper.make_opsetid(*opset) for opset in model.opset_imports.items()]
    lowest = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    model.ir_version = max(model.ir_version, lowest, _INITIALIZERS_APART)


def _set_metadata(model: Any, job: Job) -> None:
    model.producer_name = "ingot"
    model.producer_version = __version__
    model.metadata_props.clear()
    model.metadata_props.update(sorted(job.metadata.items()))
    model.doc_string = None
    for node in _nodes(model):
        # Stack traces hold paths of this machine.
        scopes = node.metadata_props.get(NAME_SCOPES)
        node.metadata_props.clear()
        if scopes:
            node.metadata_props[NAME_SCOPES] = scopes
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _check_file(path: Path) -> None:
    """Check a written file with full shape inference.

    Raises:
        CheckError: it is not valid ONNX.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        reason, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [
            type(error).__name__
        ]
        if reason.endswith(":") and more:
            reason = f"{reason} {more[0]}"
        raise CheckError(
            f"{path.name}: not delivered: onnx.checker refuses it: {reason}"
        ) from error
