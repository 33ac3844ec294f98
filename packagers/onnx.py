"""Packages ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from ..frameworks import ModelSource
from ..runtime.child import onnx_external_data
from .base import PackageArguments, PackageBuilder, PathLike, TensorSpecs, packager, parsed


@packager
def create_onnx_package(
    path: PathLike,
    model_name: str,
    input_spec: TensorSpecs | None = None,
    output_spec: TensorSpecs | None = None,
    *,
    model_path: PathLike,
    **arguments: Unpack[PackageArguments],
) -> Path:
    """Package an ONNX file, with the files of external data beside it.

    Args:
        path: the package to make.
        model_name: the model's name.
        input_spec: the inputs; None takes them from the file.
        output_spec: the outputs; None takes them from the file.
        model_path: the ONNX file.
        arguments: see :class:`~ingot.packagers.base.PackageOptions`.

    Returns:
        the path of the package.

    Raises:
        CheckError: the package's outputs differ from the expected ones; nothing is written.
        IngotError: the file cannot be read, or the package not be written.
    """
    model = Path(model_path).expanduser()
    with PackageBuilder(path, model_name, "onnx", arguments) as builder:
        builder.add_file("0/data/model.onnx", model)
        for name in onnx_external_data(model):
            builder.add_file(f"0/data/{name}", model.parent / name)
        source = ModelSource(
            "onnx",
            str(model),
            parsed(input_spec, "input_spec"),
            parsed(output_spec, "output_spec"),
            model,
            custom_ops=builder.custom_ops,
        )
        return builder.finish(input_spec, output_spec, source)
