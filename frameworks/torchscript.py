"""TorchScript files."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..specs.tensors import TensorSpec
from .base import LoadOptions, Model, ModelSource, is_zip
from .calling import name_outputs
from .torch_tensors import TensorConverter, import_torch, load_custom_ops, torch_device

if TYPE_CHECKING:
    import numpy as np

    from .base import Arrays


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Load a TorchScript file and put it into eval mode.

    Raises:
        ModelError: the file is something else, or of a format that PyTorch no longer reads.
        MissingDependencyError: PyTorch is not installed.
    """
    if source.path is None:
        raise ModelError(f"{source.label}: a TorchScript model needs a file")
    check_file(source.path, source.label)
    torch = import_torch(options)
    load_custom_ops(source.custom_ops, source.label)
    device = torch_device(options.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(source.path), map_location=device)
    except Exception as error:
        detail = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ModelError(f"{source.label}: PyTorch cannot load it: {detail}") from error
    return TorchScriptModel(source, module.eval(), device)


def check_file(path: Path, label: str) -> None:
    """Check that a file is TorchScript in the current format, before PyTorch opens it.

    Raises:
        ModelError: it is a pickle, a checkpoint, the format of before PyTorch 1.4, or damaged.
    """
    if not is_zip(path):
        with path.open("rb") as file:
            start = file.read(2)
        if start[:1] == b"\x80":
            raise ModelError(
                f"{label}: found a pickle, which may run code when it is read;"
                " expected a TorchScript file",
                hint="export the module with torch.jit.script(module).save(path)",
            )
        raise ModelError(f"{label}: not a TorchScript file (it is no zip archive, or truncated)")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{label}: not a readable TorchScript file: {error}") from error
    if "constants.pkl" in names:
        return
    if "model.json" in names:
        raise ModelError(
            f"{label}: found a TorchScript file in the format of PyTorch 1.0 to 1.3 (model.json),"
            " which current PyTorch cannot read",
            hint="load it with PyTorch 1.4 to 1.13 and save it again",
        )
    if "data.pkl" in names:
        raise ModelError(
            f"{label}: found a checkpoint of torch.save, a pickle that may run code;"
            " expected a TorchScript file",
            hint="export the module with torch.jit.script(module).save(path), or use its"
            " state dict as 'weights' of a PyTorch spec",
        )
    raise ModelError(f"{label}: found a zip archive without constants.pkl; expected TorchScript")


class TorchScriptModel(Model):
    """A ``ScriptModule`` that is called by keyword, by position, or with one dict of all inputs."""

    def __init__(self, source: ModelSource, module: Any, device: Any) -> None:
        torch = import_torch()
        self.native = module
        self.version = torch.__version__
        self._label = source.label
        self._converter = TensorConverter(device, source.label, module)
        arguments = module.forward.schema.arguments[1:]
        names = [argument.name for argument in arguments]
        self.inputs = _inputs(source, arguments)
        self.outputs = source.outputs or ()
        declared = [spec.name for spec in self.inputs]
        self._as_dict = (
            len(arguments) == 1 and arguments[0].type.kind() == "DictType" and declared != names
        )
        self._by_keyword = not self._as_dict and set(declared) <= set(names)
        self._output_names = [spec.name for spec in self.outputs]
        if not (self._as_dict or self._by_keyword) and len(declared) > len(names):
            raise ModelError(
                f"{source.label}: forward takes {len(names)} arguments ({', '.join(names)});"
                f" the spec has {len(declared)} inputs ({', '.join(declared)})"
            )

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        converter = self._converter
        if self._by_keyword or self._as_dict:
            names: Iterable[str] = arrays
        else:
            names = [spec.name for spec in self.inputs if spec.name in arrays]
        try:
            returned = converter.call(arrays, names, self._invoke)
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {_reason(error)}") from error
        named = name_outputs(returned, self._output_names, self._label)
        return converter.to_arrays(named, outputs, arrays)

    def _invoke(self, tensors: dict[str, Any]) -> Any:
        if self._by_keyword:
            return self.native(**tensors)
        if self._as_dict:
            return self.native(tensors)
        return self.native(*tensors.values())


def _inputs(source: ModelSource, arguments: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """The declared inputs; else those of the schema, which says neither dtype nor shape."""
    if source.inputs is not None:
        return source.inputs
    for argument in arguments:
        if argument.type.kind() != "TensorType":
            raise ModelError(
                f"{source.label}: forward takes {argument.name!r} of type {argument.type};"
                " a TorchScript file does not say which inputs that means",
                hint="describe the inputs and outputs in a spec",
            )
    return tuple(
        TensorSpec(argument.name, None, None, optional=argument.has_default_value())
        for argument in arguments
    )


def _reason(error: Exception) -> str:
    """The line of a TorchScript error that says what went wrong, after its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        if "Error" in line:
            return line
    return lines[0] if lines else type(error).__name__
