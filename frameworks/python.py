"""Plain Python models: an entry point that returns a callable of named arrays."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import IngotError, ModelError, SpecError
from .base import LoadOptions, Model, ModelSource, decode_strings
from .calling import name_outputs, takes_keywords
from .embedded.ingot_entry import wants_data_root
from .entrypoints import CodeFolder, user_code_error

if TYPE_CHECKING:
    from .base import Arrays


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Import the entry point and call it.

    Raises:
        ModelError: the entry point cannot be imported, fails, or returns no callable.
    """
    from .custom_ops import load_once

    load_once(source.custom_ops, "python", _load_library, source.label)
    code = code_folder(source)
    function = call_entrypoint(source, code)
    if not callable(function):
        raise ModelError(
            f"{source.label}: the entry point {source.entrypoint!r} returned a"
            f" {type(function).__name__}; expected a callable of named arrays"
        )
    # Models get views that cannot be written to; PyTorch warns of each one it is handed.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
    return _PythonModel(source, function, code)


def _load_library(path: str) -> None:
    import ctypes

    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def code_folder(source: ModelSource) -> CodeFolder:
    """Return the importable code of a model."""
    # Only a package comes with a folder of data; the entry point of a spec is a key of the spec.
    error = SpecError if source.data_root is None else ModelError
    return CodeFolder(source.code_root, source.label, error)


def call_entrypoint(source: ModelSource, code: CodeFolder) -> Any:
    """Call the entry point, with the folder of its data when it takes one.

    A module that was pruned gets the sizes of its channel recipe; its weights are not loaded.

    Raises:
        ModelError: it cannot be imported, or fails, or the recipe does not fit.
    """
    if source.entrypoint is None:
        raise ModelError(f"{source.label}: Python code needs an entry point")
    entrypoint = code.callable(source.entrypoint)
    arguments: list[str] = []
    kwargs = source.entrypoint_kwargs
    if source.always_pass_data_root or wants_data_root(entrypoint, kwargs):
        arguments = [str(_data_root(source, code))]
    try:
        model = entrypoint(*arguments, **kwargs)
    except IngotError:
        raise
    except Exception as error:
        what = f"the entry point {source.entrypoint!r}"
        raise user_code_error(source.label, what, error, source.code_root) from error
    if source.recipe is not None:
        from .torch_recipe import apply_recipe

        model = apply_recipe(model, source.recipe, source.label)
    return model


def _data_root(source: ModelSource, code: CodeFolder) -> Path:
    """Return the folder of the model's data; before packaging, one of links to the data files."""
    if source.data_root is not None:
        return source.data_root
    folder = Path(tempfile.mkdtemp(prefix="ingot-data-"))
    # The code may read its data at any time, so the folder lives as long as the code.
    weakref.finalize(code, shutil.rmtree, folder, ignore_errors=True)
    for name, path in source.data_files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(path.resolve(), target)
    return folder


class _PythonModel(Model):
    def __init__(self, source: ModelSource, function: Callable[..., Any], code: CodeFolder) -> None:
        if source.inputs is None or source.outputs is None:
            raise ModelError(f"{source.label}: Python code needs inputs and outputs in its spec")
        self.inputs, self.outputs = source.inputs, source.outputs
        self.native = function
        self.version = ".".join(str(part) for part in sys.version_info[:3])
        self._label = source.label
        self._code = code
        self._writes = False
        names = [spec.name for spec in self.inputs]
        self._by_keyword = takes_keywords(function, names)
        self._output_names = [spec.name for spec in self.outputs]

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        try:
            returned = self._call(arrays)
        except Exception as error:
            raise user_code_error(self._label, "the model", error, self._code.folder) from error
        named = name_outputs(returned, self._output_names, self._label)
        wanted: Mapping[str, Any] | list[str]
        wanted = named if outputs is None else [name for name in outputs if name in named]
        return {name: self._array(name, named[name]) for name in wanted}

    def _call(self, arrays: Arrays) -> Any:
        """Call the model with views that cannot be written to, or with copies once it tried to."""
        if self._writes:
            return self._invoke({name: array.copy() for name, array in arrays.items()})
        views = {name: array.view() for name, array in arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        try:
            return self._invoke(views)
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            self._writes = True
            return self._call(arrays)

    def _invoke(self, arrays: Arrays) -> Any:
        if self._by_keyword:
            return self.native(**arrays)
        return self.native(*(arrays[spec.name] for spec in self.inputs if spec.name in arrays))

    def _array(self, name: str, value: Any) -> np.ndarray[Any, Any]:
        if hasattr(value, "detach") and hasattr(value, "numpy"):  # a PyTorch tensor
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
        if array.dtype.kind == "O" and all(isinstance(item, str | bytes) for item in array.flat):
            return decode_strings(array)
        if array.dtype.kind == "S":
            return decode_strings(array)
        if array.dtype.kind == "O":
            raise ModelError(
                f"{self._label}: output {name!r} is a {type(value).__name__} of mixed objects;"
                " expected numbers or strings"
            )
        return array

    def close(self) -> None:
        self._code.close()
