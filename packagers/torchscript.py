"""Packages TorchScript modules and files."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any, Unpack

from ..errors import ModelError, UsageError
from ..frameworks import ModelSource
from .base import (
    PackageArguments,
    PackageBuilder,
    PathLike,
    TensorSpecs,
    exactly_one,
    packager,
    parsed,
)


@packager
def create_torchscript_package(
    path: PathLike,
    model_name: str,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    *,
    module: Any = None,
    module_path: PathLike | None = None,
    **arguments: Unpack[PackageArguments],
) -> Path:
    """Package a TorchScript module, or a file that ``module.save()`` wrote.

    Args:
        path: the package to make.
        model_name: the model's name.
        input_spec: the inputs.
        output_spec: the outputs.
        module: a ``torch.jit.ScriptModule``; exactly one of this and ``module_path``. PyTorch
            writes the constants of a module in the order of a set, so that only packages made from
            a file are the same bytes whatever the process.
        module_path: a TorchScript file.
        arguments: see :class:`~ingot.packagers.base.PackageOptions`.

    Returns:
        the path of the package.

    Raises:
        CheckError: the package's outputs differ from the expected ones; nothing is written.
        IngotError: the file is no TorchScript, or the package cannot be written.
    """
    with (
        PackageBuilder(path, model_name, "torchscript", arguments) as builder,
        tempfile.TemporaryDirectory(prefix="ingot-") as folder,
    ):
        exactly_one(module=module, module_path=module_path)
        if module_path is None:
            file, label = Path(folder, "model.pt"), model_name
            _save(module, file)
        else:
            from ..frameworks.torchscript import check_file

            file, label = Path(module_path).expanduser(), str(module_path)
            if not file.is_file():
                raise ModelError(f"{file}: no such file")
            check_file(file, label)
        builder.add_file("0/data/model.pt", file)
        source = ModelSource(
            "torchscript",
            label,
            parsed(input_spec, "input_spec"),
            parsed(output_spec, "output_spec"),
            file,
            custom_ops=builder.custom_ops,
        )
        return builder.finish(input_spec, output_spec, source)


def _save(module: Any, file: Path) -> None:
    from ..frameworks.torch_tensors import import_torch

    torch = import_torch()
    if not isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            f"module: found a {type(module).__name__}; expected a torch.jit.ScriptModule",
            hint="use torch.jit.script(module) or torch.jit.trace(module, example_inputs)",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(module, str(file))
