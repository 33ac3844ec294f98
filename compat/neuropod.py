"""Neuropod's packagers and loader under their own names and argument names.

``from neuropod.packagers import create_tensorflow_neuropod`` becomes
``from ingot.compat.neuropod import create_tensorflow_neuropod``, and so on. Two things are as they
are only here, because existing callers rely on them:

- integers that a float input can hold exactly are cast to it;
- :func:`load_neuropod` **trusts the package**: it runs the Python code and loads the native
  operators that the package carries. Load only packages whose author you trust, or use
  ``ingot.load``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import numpy as np

from ..errors import CheckError, UsageError
from ..packagers import (
    create_keras_package,
    create_python_package,
    create_random_package,
    create_tensorflow_package,
    create_torchscript_package,
)
from ..packagers.base import PackageArguments, TensorSpecs, parsed
from ..runtime.golden import compare
from ..runtime.loading import load
from ..runtime.package import Package
from ..runtime.session import LoadedModel
from ..specs import TensorSpec
from ..specs.dtypes import numpy_dtype

PathLike = str | os.PathLike[str]

_FLOATS = ("float16", "bfloat16", "float32", "float64")

__all__ = [
    "create_keras_neuropod",
    "create_python_neuropod",
    "create_pytorch_neuropod",
    "create_tensorflow_neuropod",
    "create_torchscript_neuropod",
    "load_and_test",
    "load_neuropod",
    "randomify_neuropod",
]


def create_tensorflow_neuropod(
    neuropod_path: PathLike,
    model_name: str,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    node_name_mapping: Mapping[str, str] | None = None,
    frozen_graph_path: PathLike | None = None,
    graph_def: Any = None,
    saved_model_dir: PathLike | None = None,
    trackable_obj: Any = None,
    init_op_names: Sequence[str] | str = (),
    **arguments: Unpack[PackageArguments],
) -> None:
    """Package a TensorFlow model; see :func:`ingot.create_tensorflow_package`."""
    create_tensorflow_package(
        neuropod_path,
        model_name,
        input_spec,
        output_spec,
        node_name_mapping=node_name_mapping,
        frozen_graph_path=frozen_graph_path,
        graph_def=graph_def,
        saved_model_dir=saved_model_dir,
        trackable_obj=trackable_obj,
        init_op_names=init_op_names,
        **_cast_test_data(arguments, input_spec),
    )


def create_torchscript_neuropod(
    neuropod_path: PathLike,
    model_name: str,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    module: Any = None,
    module_path: PathLike | None = None,
    **arguments: Unpack[PackageArguments],
) -> None:
    """Package a TorchScript module or file; see :func:`ingot.create_torchscript_package`."""
    create_torchscript_package(
        neuropod_path,
        model_name,
        input_spec,
        output_spec,
        module=module,
        module_path=module_path,
        **_cast_test_data(arguments, input_spec),
    )


def create_keras_neuropod(
    neuropod_path: PathLike,
    model_name: str,
    sess: Any = None,
    model: Any = None,
    node_name_mapping: Mapping[str, str] | None = None,
    input_spec: TensorSpecs | None = None,
    output_spec: TensorSpecs | None = None,
    **arguments: Unpack[PackageArguments],
) -> None:
    """Package a Keras model for the platform ``tensorflow``, as a SavedModel.

    ``sess`` is ignored: Keras 3 has no sessions. See :func:`ingot.create_keras_package`, which
    keeps the ``.keras`` file instead.
    """
    del sess
    create_keras_package(
        neuropod_path,
        model_name,
        input_spec,
        output_spec,
        model=model,
        node_name_mapping=node_name_mapping,
        platform="tensorflow",
        **_cast_test_data(arguments, input_spec),
    )


def create_python_neuropod(
    neuropod_path: PathLike,
    model_name: str,
    data_paths: Iterable[Mapping[str, Any]],
    code_path_spec: Sequence[Mapping[str, Any]],
    entrypoint_package: str,
    entrypoint: str,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    requirements: str | None = None,
    **arguments: Unpack[PackageArguments],
) -> None:
    """Package Python code; see :func:`ingot.create_python_package`."""
    create_python_package(
        neuropod_path,
        model_name,
        input_spec,
        output_spec,
        code_path_spec=code_path_spec,
        entrypoint_package=entrypoint_package,
        entrypoint=entrypoint,
        data_paths=data_paths,
        requirements=requirements,
        **_cast_test_data(arguments, input_spec),
    )


create_pytorch_neuropod = create_python_neuropod
"""In Neuropod the two are one function: what the entry point returns is called with NumPy arrays.

:func:`ingot.create_pytorch_package` hands over tensors instead.
"""


def randomify_neuropod(
    output_path: PathLike,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    model_name: str = "random_model",
    **arguments: Unpack[PackageArguments],
) -> None:
    """Package a stand-in with random outputs; see :func:`ingot.create_random_package`."""
    create_random_package(output_path, model_name, input_spec, output_spec, **arguments)


def load_neuropod(
    neuropod_path: PathLike,
    visible_gpu: int | None = None,
    ignore_lock: bool = True,
    use_ope: bool = False,
) -> NeuropodModel:
    """Load a package and trust it: code that it carries runs.

    Args:
        neuropod_path: the package.
        visible_gpu: index of the GPU to use; None runs on the CPU.
        ignore_lock: Neuropod installed locked requirements; here they are ignored, or (False) have
            to be installed.
        use_ope: run it in a process of its own (out-of-process execution).
    """
    model = load(
        Path(neuropod_path),
        device="cpu" if visible_gpu is None else f"gpu:{visible_gpu}",
        trust_code=True,
        ignore_lock=ignore_lock,
        isolate=use_ope,
    )
    return NeuropodModel(model)


class NeuropodModel:
    """A loaded package with Neuropod's leniency about integers; made by :func:`load_neuropod`."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._specs = model.inputs

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def platform(self) -> str:
        """The platform of the package."""
        return self._model.platform

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The input specs, as dicts."""
        return [spec.to_dict() for spec in self._model.inputs]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The output specs, as dicts."""
        return [spec.to_dict() for spec in self._model.outputs]

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run the model; see :meth:`ingot.runtime.LoadedModel.infer`."""
        return self._model.infer(_cast(inputs, self._specs), outputs)

    def close(self) -> None:
        """Release the model."""
        self._model.close()

    def __enter__(self) -> NeuropodModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def load_and_test(neuropod_path: PathLike) -> None:
    """Run a package, which is trusted, on its golden data in this process.

    Raises:
        CheckError: an output differs (it is a ``ValueError`` too).
        UsageError: the package carries no golden data.
    """
    path = Path(neuropod_path)
    with Package(path) as package:
        golden = package.golden(trust_code=True)
    if golden is None:
        raise UsageError(f"{path}: carries no golden data")
    with load_neuropod(path) as model:
        actual = model.infer(golden.inputs)
    if golden.outputs is None:
        return
    differences = compare(golden.outputs, actual, golden.rtol, golden.atol)
    if differences:
        raise CheckError(f"{path}: {differences[0].message}")


def _cast_test_data(
    arguments: PackageArguments, input_spec: TensorSpecs | None
) -> PackageArguments:
    data = arguments.get("test_input_data")
    specs = parsed(input_spec, "input_spec")
    if data is not None and specs is not None:
        arguments["test_input_data"] = _cast(data, specs)
    return arguments


def _cast(arrays: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Cast integers to the float type of their input, where that keeps every value."""
    types = {spec.name: spec.dtype for spec in specs}
    result: dict[str, Any] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        dtype = types.get(name)
        if array.dtype.kind in "iu" and dtype in _FLOATS:
            array = _cast_exactly(array, numpy_dtype(dtype))
        result[name] = array
    return result


def _cast_exactly(array: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Return integers as floats, or unchanged where one of them would be rounded."""
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    # Rounding up can leave the range of the integer type; casting such a float back is undefined.
    limits = np.iinfo(array.dtype)
    wide = cast.astype(np.float64)
    inside = (wide >= float(limits.min)) & (wide < float(limits.max) + 1.0)
    if not inside.all() or not np.array_equal(wide.astype(array.dtype), array):
        return array
    return cast
