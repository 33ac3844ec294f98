"""ONNX files, from PyTorch, TorchScript, Keras, TensorFlow, or another ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .base import Draft, Job, Variant, converting
from .onnx_files import Converted, deserialize, finish, optimize, read_model
from .tensorflow_operators import HANDLERS

_LOWEST_DYNAMO = 18
"""The lowest opset that ``torch.onnx.export`` writes from a traced program."""
_HIGHEST_TF2ONNX = 18
"""tf2onnx writes no later opset; files are converted upwards from it."""


def export(job: Job, variants: Sequence[Variant]) -> list[Draft]:
    """Write one file a variant.

    A fixed-shape file is the dynamic-shape one with its sizes filled in and folded, unless the
    source has to be traced anew for them.

    Raises:
        ModelError: the model cannot be converted, or not to this opset.
        UsageError: it has string inputs that the format cannot take.
    """
    convert = _CONVERTERS[job.source.framework]
    drafts = []
    for variant in variants:
        key = ("onnx", variant.inputs if variant.retrace else None)
        if key not in job.shared:
            # Of the first variant: the dynamic-shape one, or the only one.
            job.shared[key] = convert(job, variant)
        path = job.path(variant, ".onnx")
        companions, notes = finish(job.shared[key], job, variant, path)
        runner = job.runner("onnx", path)
        drafts.append(Draft(path, variant, runner, companions, notes=notes))
    return drafts


def _from_torch(job: Job, variant: Variant) -> Converted:
    import torch

    from . import torch_programs
    from .torch_errors import unsupported_operator

    try:
        # Always: the older exporter would not say that control flow depends on data.
        program = torch_programs.exported_program(job, variant)
        if job.opset is not None and job.opset < _LOWEST_DYNAMO:
            # Converting its files downwards fails on many an operator; the older one writes them.
            return _from_torchscript(job, variant)
    except torch_programs.FixedSizeError:
        # Recurrent layers: the older exporter has an operator for them, whatever their length.
        return _from_torchscript(job, variant)
    with converting(job.source.label, "torch.onnx.export"):
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=job.opset,
                verbose=False,
                external_data=False,
                # Its optimizer folds BatchNorm, too.
                optimize=job.bn_fusion,
            )
            assert converted is not None
            if not job.bn_fusion:
                optimize(converted.model, keep_batch_norm=True)
        except Exception as error:
            raise unsupported_operator(error, job.source.label, program) from error
    order = torch_programs.argument_order(job, list(variant.example))
    return Converted(converted.model, order, job.shared["output_order"])


def _from_torchscript(job: Job, variant: Variant) -> Converted:
    """Convert with the exporter for TorchScript, which PyTorch keeps and deprecates."""
    import torch

    from . import torch_programs
    from .torch_errors import unsupported_operator

    module = torch_programs.prepare(job, variant)
    values = torch_programs.tensors(variant.example, job.source.label)
    axes = {
        spec.name: {
            axis: str(dim) if dim is not None else f"{spec.name}_{axis}"
            for axis, dim in enumerate(spec.shape or ())
            if not isinstance(dim, int)
        }
        for spec in (*variant.inputs, *variant.outputs)
    }
    order = job.shared["output_order"]
    mode = torch.onnx.TrainingMode
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=job.folder) as folder:
        file = Path(folder, "model.onnx")
        with (
            converting(job.source.label, "torch.onnx.export"),
            torch_programs.plain_attention(),
        ):
            try:
                torch.onnx.export(
                    module,
                    tuple(values.values()),
                    str(file),
                    dynamo=False,
                    opset_version=min(job.opset or 18, 20),
                    input_names=list(values),
                    output_names=order,
                    # In eval mode it folds BatchNorm.
                    training=mode.EVAL if job.bn_fusion else mode.PRESERVE,
                    dynamic_axes={name: found for name, found in axes.items() if found},
                )
            except Exception as error:
                program = _traced(job, variant)
                raise unsupported_operator(error, job.source.label, program) from error
        return Converted(read_model(file, job.source.label), list(values), order)


def _traced(job: Job, variant: Variant) -> Any:
    """Return the traced program, which knows the layer of an operator; None where there is none."""
    from . import torch_programs

    try:
        return torch_programs.exported_program(job, variant)
    except ModelError:
        return None


def _from_tensorflow(job: Job, variant: Variant) -> Converted:
    import tf2onnx

    from .tensorflow_functions import positional_function

    with converting(job.source.label, "tf2onnx"):
        function, signature = positional_function(job, variant)
        proto, _ = tf2onnx.convert.from_function(
            function,
            signature,
            opset=min(job.opset or _HIGHEST_TF2ONNX, _HIGHEST_TF2ONNX),
            custom_op_handlers=dict(HANDLERS),
        )
    # TensorFlow sorts what is in a dict.
    outputs = sorted(spec.name for spec in variant.outputs)
    return Converted(deserialize(proto), [spec.name for spec in variant.inputs], outputs)


def _from_onnx(job: Job, variant: Variant) -> Converted:
    path = job.source.path
    assert path is not None
    model = read_model(path, job.source.label)
    inputs = [value.name for value in model.graph.inputs if value.name is not None]
    outputs = [value.name for value in model.graph.outputs if value.name is not None]
    return Converted(model, inputs, outputs)


_CONVERTERS: Mapping[str, Callable[[Job, Variant], Converted]] = {
    "torch": _from_torch,
    "torchscript": _from_torchscript,
    "keras": _from_tensorflow,
    "tensorflow": _from_tensorflow,
    "onnx": _from_onnx,
}
