"""Packages a stand-in that returns random outputs, for testing pipelines before a model exists."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Unpack

from ..frameworks.embedded import random_outputs
from ..runtime.config import dump_json
from .base import PackageArguments, PathLike, TensorSpecs, packager, parsed
from .python import Code, package_code


@packager
def create_random_package(
    path: PathLike,
    model_name: str,
    input_spec: TensorSpecs,
    output_spec: TensorSpecs,
    **arguments: Unpack[PackageArguments],
) -> Path:
    """Package a model that returns random outputs of the right names, types and shapes.

    The outputs depend only on the inputs. A symbol in the outputs has the size that it has in the
    inputs, or a random one from 1 to 9.

    Args:
        path: the package to make.
        model_name: the model's name.
        input_spec: the inputs.
        output_spec: the outputs.
        arguments: see :class:`~ingot.packagers.base.PackageOptions`.

    Returns:
        the path of the package.

    Raises:
        IngotError: a spec is invalid, or the package cannot be written.
    """
    inputs = parsed(input_spec, "input_spec") or ()
    outputs = parsed(output_spec, "output_spec") or ()
    with tempfile.TemporaryDirectory(prefix="ingot-") as folder:
        specs = Path(folder, "specs.json")
        specs.write_bytes(
            dump_json(
                {
                    "input_spec": [spec.to_dict() for spec in inputs],
                    "output_spec": [spec.to_dict() for spec in outputs],
                }
            )
        )
        code = Code(
            entrypoint_package=random_outputs.__name__.rpartition(".")[2],
            entrypoint="get_model",
            code_root=Path(random_outputs.__file__).parent,
            data_paths=[{"path": specs, "packaged_name": specs.name}],
        )
        return package_code(path, model_name, "python", inputs, outputs, code, arguments)
