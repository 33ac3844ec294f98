"""Packages Ludwig model directories, as Python packages that call Ludwig."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from ..frameworks.embedded import ludwig_entry
from ..frameworks.ludwig import read_specs, require_ludwig
from .base import PackageArguments, PackageOptions, PathLike, TensorSpecs, packager
from .python import Code, package_code

# What training leaves in the folder, and running the model does not need.
_LEFT_BEHIND = ("llm_eval_examples", "logs", "training_checkpoints", "training_progress.json")


@packager
def create_ludwig_package(
    path: PathLike,
    model_name: str | None = None,
    input_spec: TensorSpecs | None = None,
    output_spec: TensorSpecs | None = None,
    *,
    ludwig_model_path: PathLike,
    **arguments: Unpack[PackageArguments],
) -> Path:
    """Package a trained Ludwig model; whoever runs it needs Ludwig installed.

    Args:
        path: the package to make.
        model_name: the model's name; None takes the folder's.
        input_spec: the inputs; None reads the features off the model.
        output_spec: the outputs; None gives the predictions of each output feature.
        ludwig_model_path: the folder with ``model_hyperparameters.json``.
        arguments: see :class:`~ingot.packagers.base.PackageOptions`.

    Returns:
        the path of the package.

    Raises:
        CheckError: the package's outputs differ from the expected ones; nothing is written.
        MissingDependencyError: Ludwig, which has to test the package, is not installed.
        IngotError: the folder is no Ludwig model, or the package cannot be written.
    """
    PackageOptions(**arguments)  # refuse unknown arguments before any work
    directory = Path(ludwig_model_path).expanduser()
    inputs, outputs = read_specs(directory)
    require_ludwig(str(directory))
    files = [
        file
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.relative_to(directory).parts[0] not in _LEFT_BEHIND
    ]
    code = Code(
        entrypoint_package=ludwig_entry.__name__.rpartition(".")[2],
        entrypoint="get_model",
        code_root=Path(ludwig_entry.__file__).parent,
        data_paths=[
            {
                "path": file,
                "packaged_name": f"ludwig_model/{file.relative_to(directory).as_posix()}",
            }
            for file in files
        ],
    )
    return package_code(
        path,
        model_name or directory.resolve().name,
        "python",
        inputs if input_spec is None else input_spec,
        outputs if output_spec is None else output_spec,
        code,
        arguments,
    )
