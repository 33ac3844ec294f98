"""OpenVINO models (``.xml`` with ``.bin`` beside it), which Ingot runs but does not package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from ..specs.tensors import Dimension, TensorSpec
from .base import (
    LoadOptions,
    Model,
    ModelSource,
    decode_strings,
    first_line,
    import_framework,
    parse_device,
    require_specs,
    warn_no_gpu,
)

if TYPE_CHECKING:
    from .base import Arrays

_TYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "boolean": "bool",
    "string": "string",
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_WHERE = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't fully", "Summary:")


def import_openvino() -> Any:
    """Import OpenVINO with its telemetry off.

    It sends statistics from its import on, unless the user has opted out in a file below the home
    folder; no environment variable of its own stops it. Where its package for that is missing, it
    uses a stub: so it is made to miss it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    # None makes an import of this name fail: the documented meaning of None in sys.modules.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_framework("openvino", "openvino")


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Read and compile an OpenVINO model.

    Raises:
        ModelError: it cannot be read, its ``.bin`` is missing or too short, or it does not have the
            tensors of the spec.
        MissingDependencyError: OpenVINO is not installed.
    """
    if source.path is None:
        raise ModelError(f"{source.label}: an OpenVINO model needs a file")
    openvino = import_openvino()
    weights = source.path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{source.label}: its weights, {weights.name}, are not beside it")
    core = openvino.Core()
    for library in source.custom_ops:
        try:
            core.add_extension(str(library))
        except Exception as error:
            raise ModelError(
                f"{source.label}: the custom operator library {library.name} cannot be loaded:"
                f" {first_line(error)}"
            ) from error
    # Whole floats: on some processors OpenVINO computes in bfloat16 unless it is told not to.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    try:
        model = core.read_model(str(source.path), str(weights))
        compiled = core.compile_model(model, _device(core, options.device), settings)
    except Exception as error:
        raise ModelError(
            f"{source.label}: OpenVINO {_version(openvino)} cannot open it: {first_reason(error)}"
        ) from error
    return OpenvinoModel(source, compiled, openvino)


def _device(core: Any, device: str) -> str:
    kind, index = parse_device(device)
    if kind == "gpu":
        gpus = [name for name in core.available_devices if name.startswith("GPU")]
        if index < len(gpus):
            return str(gpus[index])
        warn_no_gpu(device, "OpenVINO")
    return "CPU"


def _version(openvino: Any) -> str:
    return str(openvino.__version__).partition("-")[0]


def first_reason(error: BaseException) -> str:
    """Return the line of an OpenVINO error that says what went wrong, after where it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(_WHERE)]
    return (told or lines or [type(error).__name__])[0].removeprefix("-- ")


class OpenvinoModel(Model):
    """A compiled model; its tensors are called by the first of their names."""

    def __init__(self, source: ModelSource, compiled: Any, openvino: Any) -> None:
        self.native = compiled
        self.version = _version(openvino)
        self._label = source.label
        self._openvino = openvino
        self._request = compiled.create_infer_request()
        self._inputs = _named(compiled.inputs, source.inputs)
        self._outputs = _named(compiled.outputs, source.outputs)
        self.inputs, self.outputs = require_specs(
            source,
            [_spec(name, port, source.label) for name, port in self._inputs.items()],
            [_spec(name, port, source.label) for name, port in self._outputs.items()],
        )
        self._output_names = [spec.name for spec in self.outputs]
        self._strings = {spec.name for spec in self.outputs if spec.dtype == "string"}

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        names = self._output_names if outputs is None else outputs
        try:
            feeds = {self._inputs[name]: self._feed(array) for name, array in arrays.items()}
            returned = self._request.infer(feeds, share_inputs=True)
            values = {name: np.asarray(returned[self._outputs[name]]) for name in names}
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_reason(error)}") from error
        for name in self._strings & values.keys():
            values[name] = decode_strings(values[name].astype(object))
        return values

    def _feed(self, array: np.ndarray[Any, Any]) -> Any:
        if array.dtype.name == "bfloat16":
            openvino = self._openvino
            bits = np.ascontiguousarray(array).view(np.uint16)
            return openvino.Tensor(bits, list(array.shape), openvino.Type.bf16)
        # Not np.ascontiguousarray: it makes a vector of a scalar.
        return np.asarray(array, order="C") if array.dtype.kind != "U" else array

    def close(self) -> None:
        self._request = self.native = None


def _named(ports: Sequence[Any], declared: Sequence[TensorSpec] | None) -> dict[str, Any]:
    """Return ports by name: a declared one where it is among theirs, else the first."""
    wanted = {spec.name for spec in declared or ()}
    named = {}
    for index, port in enumerate(ports):
        names = sorted(port.names, key=lambda name: (name not in wanted, len(name), name))
        named[names[0] if names else f"tensor_{index}"] = port
    return named


def _spec(name: str, port: Any, label: str) -> TensorSpec:
    kind = port.element_type.to_string() if hasattr(port.element_type, "to_string") else ""
    dtype = _TYPES.get(kind or port.element_type.get_type_name())
    if dtype is None:
        raise ModelError(f"{label}: {name!r} is {kind}, which no tensor spec can say")
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return TensorSpec(name, dtype, None)
    return TensorSpec(name, dtype, tuple(_dimension(dim) for dim in shape))


def _dimension(dim: Any) -> Dimension:
    return None if dim.is_dynamic else int(dim.get_length())
