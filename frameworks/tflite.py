"""TensorFlow Lite files (``.tflite``), run by LiteRT; Ingot runs them but does not package them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError, SpecError
from ..specs.dtypes import canonical_dtype
from ..specs.tensors import TensorSpec
from .base import (
    LayerOutput,
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

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"


def import_litert(options: LoadOptions | None = None) -> Any:
    """Import the interpreter of LiteRT.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if options is not None and parse_device(options.device)[0] == "gpu":
        warn_no_gpu(options.device, "LiteRT")
    return import_framework("ai_edge_litert.interpreter", "tflite")


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Open a ``.tflite`` file.

    Raises:
        ModelError: the file is something else or damaged, needs TensorFlow's own operators, or does
            not have the tensors of the spec.
        MissingDependencyError: LiteRT is not installed.
    """
    if source.path is None:
        raise ModelError(f"{source.label}: a TensorFlow Lite model needs a file")
    check_file(source.path, source.label)
    litert = import_litert(options)
    try:
        with _held_back_stderr():
            interpreter = litert.Interpreter(str(source.path), num_threads=options.threads)
            interpreter.allocate_tensors()
        details = _details(interpreter)
    except Exception as error:
        hint = None
        if "Select TensorFlow op" in str(error) or "Flex" in str(error):
            hint = "export the model without Select TF ops: LiteRT has only its own operators"
        raise ModelError(
            f"{source.label}: LiteRT cannot open it: {first_line(error)}", hint=hint
        ) from error
    return TfliteModel(source, interpreter, *details)


def check_file(path: Path, label: str) -> None:
    """Check the identifier of a file; LiteRT itself checks that its tables lie inside of it.

    Raises:
        ModelError: it is something else.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if start[4:] != IDENTIFIER:
        raise ModelError(
            f"{label}: not a TensorFlow Lite file: found {start[4:]!r} at byte 4;"
            f" expected {IDENTIFIER!r}"
        )


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Hold back what LiteRT prints in C++ about its delegates; log it for those who ask."""
    import logging

    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            text = held.read().decode(errors="replace").strip()
            if text:
                logging.getLogger("ingot").debug("LiteRT: %s", text)


class TfliteModel(Model):
    """An interpreter, with the names of the signature ``serving_default``, or of the tensors.

    Sizes that the file leaves open are set at the first call, and again when they change. Inputs
    and outputs of a quantized file are the integers that it has; nothing is scaled here.
    """

    def __init__(
        self,
        source: ModelSource,
        interpreter: Any,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
    ) -> None:
        self.native = interpreter
        self.version = _version()
        self._label = source.label
        self._path = source.path
        self._inputs, self._outputs = inputs, outputs
        self.inputs, self.outputs = require_specs(
            source,
            [_spec(name, detail, source.label) for name, detail in inputs.items()],
            [_spec(name, detail, source.label) for name, detail in outputs.items()],
        )
        self._output_names = [spec.name for spec in self.outputs]
        self._shapes = {name: tuple(detail["shape"]) for name, detail in inputs.items()}
        self._strings = {
            name
            for name, detail in (*inputs.items(), *outputs.items())
            if np.dtype(detail["dtype"]).kind == "S"
        }

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        interpreter = self.native
        names = self._output_names if outputs is None else outputs
        try:
            self._resize(arrays)
            self._feed(interpreter, arrays)
            interpreter.invoke()
            values = {name: interpreter.get_tensor(self._outputs[name]["index"]) for name in names}
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_line(error)}") from error
        for name in self._strings & values.keys():
            values[name] = decode_strings(np.asarray(values[name], dtype=object))
        return values

    def _feed(self, interpreter: Any, arrays: Arrays) -> None:
        for name, array in arrays.items():
            value = array
            if name in self._strings:
                flat = [str(item).encode() for item in array.flat]
                value = np.array(flat, dtype=object).reshape(array.shape)
            interpreter.set_tensor(self._inputs[name]["index"], value)

    def layers(self, arrays: Arrays) -> list[LayerOutput]:
        """Run one batch without delegates, which hide what is inside of them.

        A layer is an operator, called like its first output; its scopes are the parts of that name,
        which converters make of the layers' names, at the last operator that has them. Integers of
        a quantized file are scaled to what they stand for.
        """
        litert = import_litert()
        plain = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = litert.Interpreter(
            str(self._path),
            experimental_op_resolver_type=plain,
            experimental_preserve_all_tensors=True,
        )
        try:
            for name, array in arrays.items():
                index = self._inputs[name]["index"]
                interpreter.resize_tensor_input(index, array.shape, strict=True)
            interpreter.allocate_tensors()
            self._feed(interpreter, arrays)
            interpreter.invoke()
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_line(error)}") from error
        details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
        found: list[LayerOutput] = []
        taken: set[str] = set()
        for operation in reversed(interpreter._get_ops_details()):
            detail = details.get(operation["outputs"][0]) if len(operation["outputs"]) else None
            if detail is None or operation["op_name"] in ("QUANTIZE", "DEQUANTIZE"):
                continue
            try:
                array = _real(interpreter.get_tensor(detail["index"]), detail)
            except ValueError:  # it has no data: a resource, or of a branch that was not taken
                continue
            if array.dtype.kind == "f":
                name, kind = detail["name"], operation["op_name"]
                # Of fused layers the last stands first; a layer's last operator has its output.
                parts = [part for part in name.split(";")[0].split("/") if part not in taken]
                taken.update(part for path in name.split(";") for part in path.split("/"))
                found.append(LayerOutput(name, kind, array, tuple(dict.fromkeys(parts))))
        return found[::-1]

    def _resize(self, arrays: Arrays) -> None:
        changed = {
            name: array.shape for name, array in arrays.items() if array.shape != self._shapes[name]
        }
        if not changed:
            return
        self._shapes |= dict.fromkeys(changed, ())  # until it is done, none is known
        for name, shape in changed.items():
            self.native.resize_tensor_input(self._inputs[name]["index"], shape, strict=True)
        self.native.allocate_tensors()
        self._shapes |= changed

    def close(self) -> None:
        self.native = None


def _real(array: np.ndarray[Any, Any], detail: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Return the numbers that the integers of a quantized tensor stand for; others as they are."""
    parameters = detail["quantization_parameters"]
    scales, zeros = parameters["scales"], parameters["zero_points"]
    if array.dtype.kind not in "iu" or len(scales) != 1:
        return array
    real = (array.astype(np.float32) - int(zeros[0])) * float(scales[0])
    return real


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("ai-edge-litert")
    except metadata.PackageNotFoundError:
        return ""


def _details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and outputs by name: of the signature, where it is about the main graph."""
    sides = interpreter.get_input_details(), interpreter.get_output_details()
    signatures: Mapping[str, Any] = interpreter.get_signature_list()
    key = SIGNATURE if SIGNATURE in signatures else next(iter(signatures), None)
    if key is not None:
        runner = interpreter.get_signature_runner(key)
        named = runner.get_input_details(), runner.get_output_details()
        order = [{_identity(detail): i for i, detail in enumerate(side)} for side in sides]
        if len(named[0]) == len(sides[0]) and all(
            _identity(detail) in known
            for side, known in zip(named, order, strict=True)
            for detail in side.values()
        ):
            return _ordered(named[0], order[0]), _ordered(named[1], order[1])
    inputs, outputs = ({detail["name"]: detail for detail in side} for side in sides)
    return inputs, outputs


def _identity(detail: Mapping[str, Any]) -> tuple[int, str]:
    return int(detail["index"]), str(detail["name"])


def _ordered(named: Mapping[str, Any], order: Mapping[tuple[int, str], int]) -> dict[str, Any]:
    return dict(sorted(named.items(), key=lambda item: order[_identity(item[1])]))


def _spec(name: str, detail: Mapping[str, Any], label: str) -> TensorSpec:
    dtype = np.dtype(detail["dtype"])
    try:
        kind = "string" if dtype.kind == "S" else canonical_dtype(dtype.name)
    except SpecError as error:
        raise ModelError(f"{label}: {name!r}: {error.reason}") from error
    signature = detail["shape_signature"]
    sizes = signature if len(signature) == len(detail["shape"]) else detail["shape"]
    return TensorSpec(name, kind, tuple(int(size) if size >= 0 else None for size in sizes))
