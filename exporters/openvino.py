"""OpenVINO models: an ``.xml`` with its weights in a ``.bin`` beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ModelError, UsageError
from ..frameworks.openvino import first_reason, import_openvino
from .base import Draft, Job, Variant, converting


def export(job: Job, variants: Sequence[Variant]) -> list[Draft]:
    """Write one model a variant.

    Keras and TensorFlow models are read by OpenVINO itself; all others as the ONNX file that Ingot
    would export. In fp16, weights are stored in half precision, and inputs and outputs stay as
    they are.

    Raises:
        ModelError: the model cannot be converted.
        UsageError: inputs and outputs are to be fp16.
        MissingDependencyError: OpenVINO is not installed.
    """
    if job.fp16_io:
        raise UsageError(
            f"{job.source.label}: openvino files in fp16 take and return fp32; found --fp16-io",
            hint="leave it out, or use --format onnx",
        )
    openvino = import_openvino()
    drafts = []
    for variant in variants:
        path = job.path(variant, ".xml")
        with tempfile.TemporaryDirectory(prefix=".openvino-", dir=job.folder) as folder:
            if job.source.framework in ("keras", "tensorflow"):
                model, names = _from_tensorflow(openvino, job, variant)
            else:
                model, names = _from_onnx(openvino, job, variant, Path(folder))
            with converting(job.source.label, "OpenVINO"):
                _name_tensors(model, variant, names, job.source.label)
                for key, text in sorted(job.metadata.items()):
                    model.set_rt_info(text, ["ingot", key])
                openvino.save_model(model, str(path), compress_to_fp16=job.precision == "fp16")
        runner = job.runner("openvino", path)
        drafts.append(Draft(path, variant, runner, (path.with_suffix(".bin"),)))
    return drafts


def _from_onnx(
    openvino: Any, job: Job, variant: Variant, folder: Path
) -> tuple[Any, Mapping[str, str]]:
    from . import onnx

    # OpenVINO compresses the weights itself: its fp16 is not that of an ONNX file.
    shared: dict[Any, Any] = job.shared if job.precision == "fp32" else {}
    whole = replace(job, folder=folder, precision="fp32", shared=shared)
    draft = onnx.export(whole, [variant])[0]
    model = _convert(openvino, job, str(draft.path))
    return model, {spec.name: spec.name for spec in variant.inputs}


def _from_tensorflow(openvino: Any, job: Job, variant: Variant) -> tuple[Any, Mapping[str, str]]:
    from .tensorflow_functions import concrete_function, safe_names

    names = safe_names([spec.name for spec in variant.inputs])
    with converting(job.source.label, "TensorFlow"):
        function = concrete_function(job, variant, names)
    return _convert(openvino, job, function), names


def _convert(openvino: Any, job: Job, model: Any) -> Any:
    label = job.source.label
    with converting(label, "OpenVINO"):
        try:
            return openvino.convert_model(model)
        except Exception as error:
            raise ModelError(
                f"{label}: OpenVINO cannot convert it: {first_reason(error)}",
                hint="use --format onnx",
            ) from error


def _name_tensors(model: Any, variant: Variant, names: Mapping[str, str], label: str) -> None:
    """Leave the name of the spec as the only one of every input and output.

    Raises:
        ModelError: one of them is not there.
    """
    for kind, ports, specs in (
        ("input", model.inputs, variant.inputs),
        ("output", model.outputs, variant.outputs),
    ):
        by_name = {name: index for index, port in enumerate(ports) for name in port.names}
        for spec in specs:
            made = names.get(spec.name, spec.name) if kind == "input" else spec.name
            if made not in by_name:
                raise ModelError(
                    f"{label}: OpenVINO has dropped the {kind} {spec.name!r};"
                    f" found {', '.join(sorted(by_name)) or 'none'}"
                )
            ports[by_name[made]].get_tensor().set_names({spec.name})
