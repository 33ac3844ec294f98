"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import IngotError, ModelError
from ..specs.tensors import Dimension, TensorSpec
from .base import (
    LayerOutput,
    LoadOptions,
    Model,
    ModelSource,
    decode_strings,
    first_line,
    import_framework,
    require_specs,
)
from .onnx_packed import full_speed

if TYPE_CHECKING:
    from .base import Arrays, OutputMemory

_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "string": "string",
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64")},
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64")},
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_BIND_BYTES = 1 << 18
_MOST_SHAPES = 64


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off: it would write below the user's cache folder.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_framework("onnxruntime", "onnx")


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Open an ONNX file in ONNX Runtime.

    Raises:
        ModelError: the file cannot be opened, or does not have the tensors of the spec.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    runtime = import_onnxruntime()
    if source.path is None:
        raise ModelError(f"{source.label}: an ONNX model needs a file")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
    for library in source.custom_ops:
        try:
            settings.register_custom_ops_library(str(library))
        except Exception as error:
            raise ModelError(
                f"{source.label}: the custom operator library {library.name} cannot be loaded:"
                f" {first_line(error)}"
            ) from error
    try:
        with full_speed(source.path, settings, runtime, source.label) as model:
            session = runtime.InferenceSession(
                model, settings, providers=_providers(runtime, options.device)
            )
    except IngotError:
        raise
    except Exception as error:
        raise ModelError(
            f"{source.label}: ONNX Runtime {runtime.__version__} cannot open it:"
            f" {first_line(error)}"
        ) from error
    return _OnnxModel(source, session, runtime)


def _providers(runtime: Any, device: str) -> list[Any]:
    from .base import parse_device, warn_no_gpu

    kind, index = parse_device(device)
    if kind == "gpu":
        if "CUDAExecutionProvider" in runtime.get_available_providers():
            return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
        warn_no_gpu(device, "ONNX Runtime")
    return ["CPUExecutionProvider"]


class _OnnxModel(Model):
    def __init__(self, source: ModelSource, session: Any, runtime: Any) -> None:
        self.version = runtime.__version__
        self.native = session
        self._label = source.label
        self._path = Path(source.path or "")
        self._runtime = runtime
        self._session = session
        inputs = [_tensor_spec(value, source.label) for value in session.get_inputs()]
        outputs = [_tensor_spec(value, source.label) for value in session.get_outputs()]
        self.inputs, self.outputs = require_specs(source, inputs, outputs)
        self._output_names = [spec.name for spec in self.outputs]
        self._strings = {spec.name for spec in self.outputs if spec.dtype == "string"}
        self._large_outputs: dict[Any, dict[str, tuple[str, tuple[int, ...]]]] = {}
        self._bfloat16 = any(spec.dtype == "bfloat16" for spec in (*inputs, *outputs))

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        names = self._output_names if outputs is None else outputs
        try:
            if self._bfloat16:
                values = self._run_bfloat16(arrays, names)
            else:
                values = self._session.run(names, arrays)
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_line(error)}") from error
        named = dict(zip(names, values, strict=True))
        for name in self._strings:
            if name in named:
                named[name] = decode_strings(np.asarray(named[name], dtype=object))
        return named

    def run_into(
        self, arrays: Arrays, outputs: Sequence[str] | None, memory: OutputMemory
    ) -> dict[str, np.ndarray[Any, Any]]:
        names = self._output_names if outputs is None else list(outputs)
        shapes = (tuple(names), *((name, array.shape) for name, array in arrays.items()))
        known = self._large_outputs.get(shapes)
        if known:
            targets = memory(known)
            try:
                self._session.run_with_iobinding(self._binding(arrays, names, targets))
                return targets
            except Exception as error:
                # Sizes that depend on values, or an error of the model: which of them, a plain run
                # tells.
                logging.getLogger("ingot").debug("%s: no binding: %s", self._label, error)
                self._large_outputs[shapes] = {}
        found = self.run(arrays, names)
        if known is None and len(self._large_outputs) < _MOST_SHAPES:
            self._large_outputs[shapes] = self._bindable(arrays, found)
        return found

    def _bindable(
        self, arrays: Arrays, found: dict[str, np.ndarray[Any, Any]]
    ) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return types and shapes of outputs that are worth being bound; none for small ones."""
        everything = [*arrays.values(), *found.values()]
        if any(array.dtype.kind not in "biuf" or array.size == 0 for array in everything):
            return {}
        if sum(array.nbytes for array in found.values()) < _BIND_BYTES:
            return {}
        return {name: (array.dtype.name, array.shape) for name, array in found.items()}

    def _binding(self, arrays: Arrays, names: Sequence[str], targets: dict[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, array in arrays.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in names:
            target = targets[name]
            binding.bind_output(
                name,
                "cpu",
                0,
                target.dtype.type,
                target.shape,
                target.__array_interface__["data"][0],
            )
        return binding

    def _run_bfloat16(self, arrays: Arrays, names: Sequence[str]) -> list[Any]:
        """Run through OrtValues: NumPy has no bfloat16, so ONNX Runtime gets the raw 16 bits."""
        from ..specs.dtypes import numpy_dtype

        value_type = self._runtime.OrtValue
        feeds = {}
        for name, array in arrays.items():
            if array.dtype.name == "bfloat16":
                bits = np.ascontiguousarray(array).view(np.uint16)
                feeds[name] = value_type.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
            else:
                feeds[name] = value_type.ortvalue_from_numpy(array)
        values = []
        for value in self._session.run_with_ort_values(names, feeds):
            if value.element_type() == _BFLOAT16:
                values.append(_bits(value).view(numpy_dtype("bfloat16")))
            else:
                values.append(value.numpy())
        return values

    def layers(self, arrays: Arrays) -> list[LayerOutput]:
        from .layers import onnx_layers

        return onnx_layers(self._path, arrays)

    def close(self) -> None:
        self._session = None


def _bits(value: Any) -> np.ndarray[Any, Any]:
    """Copy the raw 16 bits of a bfloat16 OrtValue: its own ``numpy()`` refuses the type."""
    import ctypes

    shape = tuple(value.shape())
    count = int(np.prod(shape))
    buffer = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.ctypeslib.as_array(buffer).reshape(shape).copy()


def _tensor_spec(value: Any, label: str) -> TensorSpec:
    kind = value.type
    if not kind.startswith("tensor("):
        raise ModelError(f"{label}: {value.name!r} is a {kind}; only tensors are supported")
    dtype = _TYPES.get(kind[len("tensor(") : -1])
    if dtype is None:
        raise ModelError(f"{label}: {value.name!r} is a {kind}, which no tensor spec can say")
    return TensorSpec(value.name, dtype, tuple(_dimension(dim) for dim in value.shape))


def _dimension(dim: Any) -> Dimension:
    # ONNX Runtime invents names such as "unk__12" for dimensions that have none.
    if isinstance(dim, int):
        return dim if dim > 0 else None
    return None if not dim or dim.startswith("unk__") else str(dim)


def external_data_files(path: Path) -> list[str]:
    """Return the files beside an ONNX file that hold its weights, relative to it, sorted.

    Raises:
        ModelError: the file cannot be parsed, or names a file outside its folder.
        MissingDependencyError: the package onnx is not installed.
    """
    onnx = import_framework("onnx", "onnx")
    from onnx.external_data_helper import (
        ExternalDataInfo,
        _get_all_tensors,
        uses_external_data,
    )

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ModelError(f"{path}: not a readable ONNX file: {first_line(error)}") from error
    names = {
        ExternalDataInfo(tensor).location
        for tensor in _get_all_tensors(model)
        if uses_external_data(tensor)
    }
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"{path}: its external data {name!r} lies outside of its folder")
    return sorted(names)
