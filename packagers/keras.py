"""Packages Keras models."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from ..errors import ModelError, UsageError
from ..frameworks import LoadOptions, ModelSource
from ..frameworks.keras_files import save_keras
from ..specs import TensorSpec
from .base import (
    PackageArguments,
    PackageBuilder,
    PathLike,
    TensorSpecs,
    exactly_one,
    packager,
    parsed,
)
from .tensorflow import save_trackable


@packager
def create_keras_package(
    path: PathLike,
    model_name: str,
    input_spec: TensorSpecs | None = None,
    output_spec: TensorSpecs | None = None,
    *,
    model: Any = None,
    model_path: PathLike | None = None,
    node_name_mapping: Mapping[str, str] | None = None,
    platform: str = "keras",
    **arguments: Unpack[PackageArguments],
) -> Path:
    """Package a Keras 3 model, or a ``.keras`` file.

    Args:
        path: the package to make.
        model_name: the model's name.
        input_spec: the inputs; None takes them from the model, the first dimension being
            ``batch_size``.
        output_spec: the outputs, likewise.
        model: a ``keras.Model``; exactly one of this and ``model_path``.
        model_path: a ``.keras`` file.
        node_name_mapping: the model's own name of each input and output, where they differ.
        platform: ``keras`` keeps the ``.keras`` file; ``tensorflow`` writes a SavedModel, which
            Neuropod can run too.
        arguments: see :class:`~ingot.packagers.base.PackageOptions`.

    Returns:
        the path of the package.

    Raises:
        CheckError: the package's outputs differ from the expected ones; nothing is written.
        IngotError: the model cannot be saved or read, or the package not be written.
    """
    if platform not in ("keras", "tensorflow"):
        raise UsageError(f"platform: found {platform!r}; expected keras or tensorflow")
    with (
        PackageBuilder(path, model_name, platform, arguments) as builder,
        tempfile.TemporaryDirectory(prefix="ingot-") as folder,
    ):
        exactly_one(model=model, model_path=model_path)
        source = ModelSource(
            "keras",
            str(model_path or model_name),
            parsed(input_spec, "input_spec"),
            parsed(output_spec, "output_spec"),
            None if model_path is None else Path(model_path).expanduser(),
            node_name_mapping=dict(node_name_mapping) if node_name_mapping else None,
            custom_ops=builder.custom_ops,
        )
        if source.path is not None and not source.path.is_file():
            raise ModelError(f"{source.path}: no such file")
        if source.path is not None and platform == "keras":
            builder.add_file("0/data/model.keras", source.path)
            builder.add_platform_config({"node_name_mapping": source.node_name_mapping})
            return builder.finish(source.inputs, source.outputs, source)
        return _package_live(builder, source, model, platform, Path(folder))


def _package_live(
    builder: PackageBuilder, source: ModelSource, model: Any, platform: str, folder: Path
) -> Path:
    """Package a model that is, or has to be, loaded in this process."""
    from ..frameworks.keras import KerasModel, import_keras, load

    if source.path is not None:
        loaded = load(source, LoadOptions())
        assert isinstance(loaded, KerasModel)
    else:
        keras = import_keras()
        if not isinstance(model, keras.Model):
            raise UsageError(f"model: found a {type(model).__name__}; expected a keras.Model")
        loaded = KerasModel(source, model, keras, LoadOptions())
    inputs, outputs = loaded.inputs, loaded.outputs
    if platform == "keras":
        file = folder / "model.keras"
        save_keras(loaded.native, file)
        builder.add_file("0/data/model.keras", file)
        builder.add_platform_config({"node_name_mapping": source.node_name_mapping})
    else:
        place = folder / "savedmodel"
        save_savedmodel(loaded, place, inputs, outputs)
        builder.add_tree("0/data/savedmodel", place)
        builder.add_platform_config({"node_name_mapping": None, "init_op_names": []})
    return builder.finish(inputs, outputs, source, loaded.run)


def save_savedmodel(
    loaded: Any,
    place: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    """Save a Keras model as a SavedModel whose signature has the names of the spec."""
    from ..frameworks.tensorflow import import_tensorflow

    tensorflow = import_tensorflow()

    class Served(tensorflow.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded.native

        def __call__(self, **tensors: Any) -> dict[str, Any]:
            return loaded.call_tensors(tensors)

    save_trackable(Served(), place, inputs, outputs)
