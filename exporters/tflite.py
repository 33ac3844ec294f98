"""``.tflite`` files, from PyTorch and TorchScript with litert-torch, from Keras and TensorFlow.

There is no way from an ONNX file: onnx2torch needs torchvision, of which no build for the CPU fits
this PyTorch; onnx2tf pins an old TensorFlow and fetches files. Its source can be exported instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..errors import IngotError, ModelError, UsageError
from ..frameworks.base import first_line
from ..frameworks.calling import name_outputs
from .base import Draft, Job, Variant, converting, fixed_batch
from .tensorflow_functions import concrete_function, safe_names, signature
from .tflite_files import finish, half_weights, name_layers

_MOST_STEPS = 64
"""Time steps up to which a recurrent layer is unrolled: each step is a copy of the layer."""
_WIDE = ("int64", "float64")
_UNROLLED = ("recurrent layers are unrolled: TensorFlow Lite has loops for a fixed batch only",)


def export(job: Job, variants: Sequence[Variant]) -> list[Draft]:
    """Write one file a variant.

    From PyTorch and TorchScript, every size is fixed and the batch is 1; from Keras and TensorFlow,
    free sizes stay free.

    Raises:
        ModelError: the model cannot be converted.
        UsageError: it has string inputs, or needs operators that only TensorFlow has; or inputs
            and outputs are to be fp16.
    """
    for spec in (*variants[0].inputs, *variants[0].outputs):
        if spec.dtype == "string":
            raise UsageError(
                f"{job.source.label}: {spec.name!r} holds strings, which tflite cannot be made for",
                hint="export the model to savedmodel, or package it: ingot package",
            )
    if job.fp16_io:
        raise UsageError(
            f"{job.source.label}: tflite files in fp16 take and return fp32; found --fp16-io",
            hint="leave it out, or use --format onnx",
        )
    is_torch = job.source.framework in ("torch", "torchscript")
    drafts = []
    convert = _from_torch if is_torch else _from_tensorflow
    for variant in variants:
        names = safe_names([spec.name for spec in variant.inputs])
        content, notes = convert(job, variant, names)
        path = job.path(variant, ".tflite")
        with converting(job.source.label, "the writer of TensorFlow Lite files"):
            finish(content, path, names, job.metadata)
        runner = job.runner("tflite", path)
        drafts.append(Draft(path, variant, runner, per_sample=is_torch, notes=notes))
    return drafts


def _from_torch(
    job: Job, variant: Variant, names: Mapping[str, str]
) -> tuple[bytes, tuple[str, ...]]:
    """Convert the program that ``torch.export`` traces at batch 1."""
    import tempfile
    from pathlib import Path

    import torch

    from . import torch_programs

    label = job.source.label
    # The weights are cast in the file: LiteRT has few operators for activations in fp16.
    whole = job if job.precision == "fp32" else replace(job, precision="fp32", shared={})
    single = replace(variant, inputs=fixed_batch(variant.inputs, 1))
    program = torch_programs.exported_program(whole, single)
    order = torch_programs.argument_order(whole, list(variant.example))
    wanted = [spec.name for spec in variant.outputs]
    in_spec = program.call_spec.in_spec
    unflatten = torch.utils._pytree.tree_unflatten
    module = torch_programs.prepare(whole, single)
    if isinstance(module, torch.jit.ScriptModule):
        module = program.module(check_guards=False)

    class Named(torch.nn.Module):
        """Takes inputs and returns outputs by name, which become those of the signature."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, **inputs: Any) -> dict[str, Any]:
            args, kwargs = unflatten([inputs[names[name]] for name in order], in_spec)
            named = name_outputs(self.model(*args, **kwargs), wanted, label)
            return {name: named[name] for name in wanted}

    values = torch_programs.tensors(variant.example, label)
    saved = torch.backends.mha.get_fastpath_enabled()
    with converting(label, "litert-torch"), tempfile.TemporaryDirectory(dir=job.folder) as folder:
        import litert_torch  # in here: it prints when it is imported

        torch.backends.mha.set_fastpath_enabled(False)
        # torch.export refuses to look into a module in training mode; a program's has no eval().
        wrapped = Named()
        wrapped.training = False
        try:
            made = litert_torch.convert(
                wrapped,
                sample_kwargs={names[name]: value for name, value in values.items()},
                strict_export=False,
                # Else the file would take int32 where the source takes int64.
                enable_x64=any(spec.dtype in _WIDE for spec in (*variant.inputs, *variant.outputs)),
            )
        except Exception as error:
            raise _torch_error(error, job) from error
        finally:
            torch.backends.mha.set_fastpath_enabled(saved)
        file = Path(folder, "model.tflite")
        made.export(str(file))
        content = name_layers(file.read_bytes(), _layer_names(wrapped))
    return (half_weights(content, label) if job.precision == "fp16" else content), ()


def _layer_names(wrapped: Any) -> dict[str, str]:
    """Return the name of every module in the source, by what litert-torch makes of it: a path.

    Its steps are class and attribute: ``nets.Net_model/torch.nn.modules.conv.Conv2d_conv1``.
    """
    found: dict[str, str] = {}

    def walk(module: Any, path: str, names: tuple[str, ...]) -> None:
        # The first name is the attribute of the wrapper.
        found[path] = ".".join(names[1:]) or "forward"
        for name, child in module.named_children():
            kind = type(child)
            step = f"{kind.__module__}.{kind.__qualname__}_{name}"
            walk(child, f"{path}/{step}", (*names, name))

    kind = type(wrapped)
    walk(wrapped, f"{kind.__module__}.{kind.__qualname__}", ())
    return found


def _torch_error(error: BaseException, job: Job) -> IngotError:
    label = job.source.label
    operator = re.search(
        r"(?:Lowering not found|not (?:found|supported)[^:]*): *([\w.:]+)", str(error)
    )
    if operator is None:
        hint = "use --format onnx or pt2"
        if job.source.framework == "torchscript":
            hint = "export the PyTorch code that it was made from, or use --format onnx"
        return ModelError(
            f"{label}: litert-torch cannot convert it: {first_line(error)}", hint=hint
        )
    return ModelError(
        f"{label}: the operator {operator.group(1)} has no counterpart in TensorFlow Lite",
        hint="write it with other operators, or use --format onnx or pt2",
    )


def _from_tensorflow(
    job: Job, variant: Variant, names: Mapping[str, str]
) -> tuple[bytes, tuple[str, ...]]:
    """Convert a function of tensors by name, whose variables are made constants first.

    The converter would keep the variables of Keras 3 as resources that nothing initializes: the
    file then computes nonsense.
    """
    try:
        return _convert(job, variant, names), ()
    except UsageError:
        layers = _recurrent_layers(job, variant)
        if not layers:
            raise
        with _unrolled(layers):
            return _convert(job, variant, names), _UNROLLED


def _convert(job: Job, variant: Variant, names: Mapping[str, str]) -> bytes:
    import tensorflow
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    label = job.source.label
    with converting(label, "TensorFlow"):
        concrete = concrete_function(job, variant, names)
        frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
        order = [tensor.name.partition(":")[0] for tensor in frozen.inputs]
        # A function that is frozen has lost its structure, whose keys come sorted.
        wanted = sorted(spec.name for spec in variant.outputs)

        def named(**feeds: Any) -> dict[str, Any]:
            return dict(zip(wanted, frozen(*[feeds[made] for made in order]), strict=True))

        served = tensorflow.function(named).get_concrete_function(**signature(variant, names))
        converter = tensorflow.lite.TFLiteConverter.from_concrete_functions(
            [served], tensorflow.Module()
        )
        if job.precision == "fp16":
            converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tensorflow.float16]
        try:
            return bytes(converter.convert())
        except Exception as error:
            raise _tensorflow_error(error, variant, label) from error


def _tensorflow_error(error: BaseException, variant: Variant, label: str) -> IngotError:
    """Name the operators that TensorFlow Lite has not, where the converter says so."""
    text = str(error)
    listed = re.search(r"(?:TF Select|Custom) ops: *([\w, ]+)", text)
    found = listed.group(1).strip() if listed else ""
    if not found:
        found = ", ".join(dict.fromkeys(re.findall(r"'tf\.(\w+)'", text)))
    if not found:
        return ModelError(f"{label}: TensorFlow Lite cannot hold it: {first_line(error)}")
    if "TensorList" in found:
        is_free = any(
            not isinstance(dim, int) for spec in variant.inputs for dim in spec.shape or ()
        )
        return UsageError(
            f"{label}: TensorFlow Lite holds recurrent layers ({found}) only if their batch and"
            f" time steps are fixed; found {'a free size' if is_free else 'sizes of a SavedModel'}",
            hint=f"export {'it at fixed sizes' if is_free else 'the Keras model'},"
            " or use --format onnx",
        )
    return UsageError(
        f"{label}: TensorFlow Lite has no operator for {found}",
        hint="LiteRT runs no operators of TensorFlow's own (Select TF ops); use --format onnx",
    )


def _recurrent_layers(job: Job, variant: Variant) -> list[Any]:
    """Return the recurrent layers of a Keras model, if their time steps are fixed and few."""
    if job.source.framework != "keras":
        return []
    layers = [layer for layer in job.model.native._flatten_layers() if hasattr(layer, "unroll")]
    steps = [spec.shape[1] for spec in variant.inputs if spec.shape and len(spec.shape) >= 3]
    if not steps or not all(isinstance(size, int) and size <= _MOST_STEPS for size in steps):
        return []
    return layers


@contextmanager
def _unrolled(layers: Sequence[Any]) -> Iterator[None]:
    before = [layer.unroll for layer in layers]
    try:
        for layer in layers:
            layer.unroll = True
        yield
    finally:
        for layer, unroll in zip(layers, before, strict=True):
            layer.unroll = unroll
