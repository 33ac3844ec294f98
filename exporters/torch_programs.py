"""PyTorch modules made ready for export, and the programs that ``torch.export`` traces of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import IngotError, ModelError, UsageError
from ..frameworks.base import first_line
from ..frameworks.calling import name_outputs, takes_keywords
from .base import Array, Job, Variant, converting

if TYPE_CHECKING:
    import torch
    from torch import nn


_LARGEST_TRIED = 1 << 20


class FixedSizeError(ModelError):
    """A size that should be free is fixed by the model, as ``torch.export`` traces it."""


def prepare(job: Job, variant: Variant, precision: str = "fp32") -> nn.Module:
    """Return the module to export: BatchNorm folded, in a precision.

    Its inputs and outputs stay fp32 unless the job says otherwise. It is made once a job, with a
    run on the example of the first variant.

    Args:
        job: what is exported.
        variant: with whose example the module is run.
        precision: ``fp16`` or ``bf16`` where the format keeps the module's own types; formats
            whose converter changes them take ``fp32``.

    Raises:
        UsageError: the source has string inputs, or is a callable that is no ``nn.Module``.
        ModelError: the model returns something that cannot be exported.
    """
    if ("module", precision) in job.shared:
        made: nn.Module = job.shared["module", precision]
        return made
    if precision != "fp32":
        half = _in_precision(prepare(job, variant), job, precision)
        job.shared["module", precision] = half
        return half
    torch = _import_torch()
    module = job.model.native
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"{job.source.label}: the entry point returned a {type(module).__name__};"
            " only a torch.nn.Module can be exported",
            hint="a callable can be packaged: ingot package",
        )
    _check_outputs(job, module, variant)
    folded: tuple[str, ...] = ()
    if job.bn_fusion and not isinstance(module, torch.jit.ScriptModule):
        from .bn_fusion import fold_batch_norm

        module, folded = fold_batch_norm(
            module, lambda item: _flat(call(job, item, variant.example)), job.source.label
        )
    job.shared["module", "fp32"] = module
    job.shared["folded"] = folded
    return module


def _import_torch() -> Any:
    from ..frameworks.torch_tensors import import_torch

    return import_torch()


def by_keyword(module: Any, names: Sequence[str]) -> bool:
    """Whether a module takes these inputs by keyword; else by position."""
    return takes_keywords(getattr(module, "forward", module), names)


def arguments(module: Any, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of a call, in the order of the module's signature."""
    if not by_keyword(module, list(values)):
        return tuple(values.values()), {}
    parameters = list(inspect.signature(module.forward).parameters)
    order = sorted(values, key=lambda name: parameters.index(name) if name in parameters else 99)
    return (), {name: values[name] for name in order}


def argument_order(job: Job, names: Sequence[str]) -> list[str]:
    """Return the names of the inputs in the order in which a call passes them."""
    args, kwargs = arguments(job.shared["module", "fp32"], dict.fromkeys(names))
    return list(names) if args else list(kwargs)


def example_tensors(job: Job, variant: Variant, precision: str) -> dict[str, torch.Tensor]:
    """Return the example of a variant in the types that a module in this precision takes."""
    torch = _import_torch()
    values = tensors(variant.example, job.source.label)
    if precision == "fp32" or not job.fp16_io:
        return values
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    return {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in values.items()
    }


def tensors(example: Mapping[str, Array], label: str) -> dict[str, torch.Tensor]:
    """Return arrays as tensors that do not share their memory.

    Raises:
        UsageError: one holds strings.
    """
    torch = _import_torch()
    found = {}
    for name, array in example.items():
        if array.dtype.kind in "UOS":
            raise UsageError(
                f"{label}: the input {name!r} holds strings, which no exported format takes",
                hint="the model can be packaged: ingot package",
            )
        if array.dtype.name == "bfloat16":
            found[name] = torch.from_numpy(array.copy().view("uint16")).view(torch.bfloat16)
            continue
        found[name] = torch.from_numpy(array.copy())
    return found


def call(job: Job, module: Any, example: Mapping[str, Array]) -> Any:
    """Call a module on example inputs, without gradients."""
    torch = _import_torch()
    args, kwargs = arguments(module, tensors(example, job.source.label))
    with torch.no_grad():
        return module(*args, **kwargs)


def _flat(returned: Any) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(returned) if isinstance(leaf, torch.Tensor)]


def _check_outputs(job: Job, module: Any, variant: Variant) -> None:
    """Check that a run returns exactly one tensor an output, and note their order.

    Raises:
        ModelError: it returns None, nested values, or other outputs than the spec names.
    """
    torch = _import_torch()
    label = job.source.label
    args_label = f"{label}: the model"
    try:
        returned = call(job, module, variant.example)
    except IngotError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in variant.example.items())
        raise ModelError(
            f"{args_label} fails on inputs of the shapes {shapes}: {first_line(error)}"
        ) from error
    names = [spec.name for spec in variant.outputs]
    named = name_outputs(returned, names, label)
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            count = f" of {len(value)}" if isinstance(value, list | tuple | dict) else ""
            raise ModelError(
                f"{args_label} returned a {type(value).__name__}{count} as output {name!r};"
                " expected a tensor",
                hint="return a tensor, a flat tuple in the order of the spec, or a dict by name",
            )
    for name in names:
        if name not in named:
            found = ", ".join(map(repr, named))
            raise ModelError(f"{args_label} did not return the output {name!r}; found {found}")
    if len({id(value) for value in named.values()}) != len(named):
        raise ModelError(
            f"{args_label} returned one tensor under two names: {', '.join(named)}",
            hint="clone() one of them",
        )
    job.shared["output_order"] = list(named)


def _in_precision(module: nn.Module, job: Job, precision: str) -> nn.Module:
    """Return a copy in half precision that takes and returns fp32, unless told otherwise."""
    import torch
    from torch import nn
    from torch.utils._pytree import tree_map

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    inner = copy.deepcopy(module).to(dtype)
    if job.fp16_io:
        return inner

    def cast(value: Any, wanted: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(wanted) if is_float else value

    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            f"{job.source.label}: TorchScript cannot be exported in {precision};"
            " its code may name fp32",
            hint="export the PyTorch code, or --format onnx --precision fp16",
        )

    class Cast(nn.Module):
        """Casts what comes in to half precision, and what goes out back to fp32."""

        def __init__(self) -> None:
            super().__init__()
            self.model = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = tree_map(lambda value: cast(value, dtype), (args, kwargs))
            return tree_map(lambda value: cast(value, torch.float32), self.model(*args, **kwargs))

    wrapped = Cast()
    # torch.export and callers by name look at the signature.
    wrapped.forward.__func__.__signature__ = inspect.signature(  # type: ignore[attr-defined]
        type(module).forward
    )
    return wrapped


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep attention from its fast path, which traced is one operator that depends on the batch."""
    import torch

    saved = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(saved)


def exported_program(job: Job, variant: Variant, precision: str = "fp32") -> Any:
    """Trace the module of a job with ``torch.export`` at the shapes of a variant, once.

    Raises:
        FixedSizeError: a size that should be free is fixed by the model.
        ModelError: control flow depends on data (the message names module and line), or PyTorch
            cannot trace it.
    """
    key = ("program", precision, variant.inputs)
    if key in job.shared:
        return job.shared[key]
    import torch

    from .torch_errors import explain

    module = prepare(job, variant, precision)
    values = example_tensors(job, variant, precision)
    args, kwargs = arguments(module, values)
    shapes = {
        spec.name: {
            axis: torch.export.Dim.AUTO
            for axis, dim in enumerate(spec.shape or ())
            if not isinstance(dim, int)
        }
        for spec in variant.inputs
        if spec.name in values
    }
    dynamic: Any = {name: shapes[name] for name in kwargs}
    if not kwargs:
        dynamic = _by_position(module, list(shapes.values()))
    with converting(job.source.label, "torch.export"):
        if isinstance(module, torch.jit.ScriptModule):
            module = _module_of_script(module, tuple(values.values()), job.source.label)
            args, kwargs, dynamic = tuple(values.values()), {}, tuple(shapes.values())
        try:
            with plain_attention():
                program = torch.export.export(
                    module, args, kwargs, dynamic_shapes=dynamic, strict=False
                )
        except Exception as error:
            raise explain(error, module, job.source.label) from error
    order = argument_order(job, list(shapes))
    _check_free(job, variant, program, order)
    _check_bounds(job, module, program, order, values)
    job.shared[key] = program
    return program


def _by_position(module: Any, shapes: Sequence[Any]) -> tuple[Any, ...]:
    """Return what is free of each argument; what ``*args`` takes is one tuple to torch.export."""
    try:
        kinds = [entry.kind for entry in inspect.signature(module.forward).parameters.values()]
    except ValueError:  # TorchScript has no signature, and no *args
        return tuple(shapes)
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], tuple(shapes[first:]))


def _check_bounds(
    job: Job, module: Any, program: Any, order: Sequence[str], values: Mapping[str, Any]
) -> None:
    """Check that the model itself takes no size beyond the bounds of the traced program.

    A model may truncate what is too long, say: traced with less, the program lacks that branch.

    Raises:
        ModelError: it runs on such a size.
    """
    import torch

    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, placeholder in zip(order, program.graph_signature.user_inputs, strict=True):
        shape = nodes[placeholder].meta["val"].shape if placeholder in nodes else ()
        for axis, size in enumerate(shape):
            symbol = getattr(getattr(size, "node", None), "expr", None)
            upper = getattr(program.range_constraints.get(symbol), "upper", None)
            if upper is None or not str(upper).isdigit() or int(upper) > _LARGEST_TRIED:
                continue
            longer = list(values[name].shape)
            longer[axis] = int(upper) + 1
            tried = {**values, name: values[name].new_zeros(longer)}
            args, kwargs = arguments(module, tried)
            try:
                with torch.no_grad():
                    module(*args, **kwargs)
            except Exception:  # the model has this bound, too
                continue
            raise ModelError(
                f"{job.source.label}: the input {name!r} may be larger than {upper} in dimension"
                f" {axis}, but then the model takes another branch, which a traced program lacks",
                hint="export with --fixed; --format jit keeps control flow",
            )


def _module_of_script(script: Any, args: tuple[Any, ...], label: str) -> Any:
    """Return an ``nn.Module`` that computes what a TorchScript module does, ready for tracing.

    Raises:
        ModelError: PyTorch cannot convert it.
    """
    try:
        from torch._export.converter import TS2EPConverter

        return TS2EPConverter(script, args).convert().module(check_guards=False)
    except Exception as error:
        raise ModelError(
            f"{label}: PyTorch cannot turn the TorchScript file into a program:"
            f" {first_line(error)}",
            hint="export the PyTorch code that it was made from, or --format onnx",
        ) from error


def _check_free(job: Job, variant: Variant, program: Any, order: Sequence[str]) -> None:
    """Check that every size that should be free stayed free.

    Raises:
        ModelError: the model fixes it.
    """
    placeholders = {
        node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"
    }
    by_name = {spec.name: spec for spec in variant.inputs}
    for name, node in zip(order, program.graph_signature.user_inputs, strict=True):
        value = placeholders.get(node)
        for axis, dim in enumerate(by_name[name].shape or ()):
            found = value.shape[axis] if value is not None else None
            # A constant may come as a SymInt.
            if not isinstance(dim, int) and str(found).isdigit():
                raise FixedSizeError(
                    f"{job.source.label}: dimension {axis} ({dim or 'any'}) of the input {name!r}"
                    f" is free in the spec, but torch.export fixes it to {found}, the size that it"
                    " was traced with",
                    hint=f"export with --fixed, or write the size in the shape of {name!r};"
                    " --format onnx and jit keep it free",
                )
