"""Packages TensorFlow graphs, SavedModels and trackable objects."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from ..errors import IngotError, ModelError, SpecError, UsageError
from ..frameworks import ModelSource
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


@packager
def create_tensorflow_package(
    path: PathLike,
    model_name: str,
    input_spec: TensorSpecs | None = None,
    output_spec: TensorSpecs | None = None,
    *,
    frozen_graph_path: PathLike | None = None,
    graph_def: Any = None,
    saved_model_dir: PathLike | None = None,
    trackable_obj: Any = None,
    node_name_mapping: Mapping[str, str] | None = None,
    init_op_names: Sequence[str] | str = (),
    **arguments: Unpack[PackageArguments],
) -> Path:
    """Package a TensorFlow model; give exactly one of the four kinds of source.

    Args:
        path: the package to make.
        model_name: the model's name.
        input_spec: the inputs; a SavedModel says its own when None.
        output_spec: the outputs; a SavedModel may have more than are named here.
        frozen_graph_path: a file with a binary GraphDef.
        graph_def: a ``tf.compat.v1.GraphDef``.
        saved_model_dir: a SavedModel folder with the signature ``serving_default``.
        trackable_obj: a ``tf.Module`` or other trackable, saved with a signature as in the spec.
        node_name_mapping: graph tensor (``"scope/x:0"``) of each input and output; for graphs only.
        init_op_names: operations of a graph to run once after loading.
        arguments: see :class:`~ingot.packagers.base.PackageOptions`.

    Returns:
        the path of the package.

    Raises:
        CheckError: the package's outputs differ from the expected ones; nothing is written.
        SpecError: the mapping misses a tensor of the spec.
        IngotError: the source cannot be read, or the package not be written.
    """
    kind = exactly_one(
        frozen_graph_path=frozen_graph_path,
        graph_def=graph_def,
        saved_model_dir=saved_model_dir,
        trackable_obj=trackable_obj,
    )
    inputs, outputs = parsed(input_spec, "input_spec"), parsed(output_spec, "output_spec")
    operations = (init_op_names,) if isinstance(init_op_names, str) else tuple(init_op_names)
    is_graph = kind in ("frozen_graph_path", "graph_def")
    if is_graph:
        _check_mapping(node_name_mapping, inputs, outputs)
    with (
        PackageBuilder(path, model_name, "tensorflow", arguments) as builder,
        tempfile.TemporaryDirectory(prefix="ingot-") as folder,
    ):
        label = str(frozen_graph_path or saved_model_dir or model_name)
        if is_graph:
            place = _graph_file(frozen_graph_path, graph_def, Path(folder))
            builder.add_file("0/data/model.pb", place)
        else:
            place = _saved_model(saved_model_dir, trackable_obj, inputs, outputs, Path(folder))
            builder.add_tree("0/data/savedmodel", place)
        mapping = dict(node_name_mapping) if is_graph and node_name_mapping else None
        builder.add_platform_config(
            {"node_name_mapping": mapping, "init_op_names": list(operations)}
        )
        source = ModelSource(
            "tensorflow",
            label,
            inputs,
            outputs,
            place,
            node_name_mapping=mapping,
            init_op_names=operations,
            custom_ops=builder.custom_ops,
        )
        return builder.finish(input_spec, output_spec, source)


def _check_mapping(
    mapping: Mapping[str, str] | None,
    inputs: tuple[TensorSpec, ...] | None,
    outputs: tuple[TensorSpec, ...] | None,
) -> None:
    if mapping is None or inputs is None or outputs is None:
        raise UsageError("a graph needs input_spec, output_spec and node_name_mapping")
    for spec in (*inputs, *outputs):
        if spec.name not in mapping:
            raise SpecError(
                f"no entry for {spec.name!r}; expected a node of the graph for every input and"
                f" output, found {', '.join(sorted(mapping)) or 'none'}",
                key="node_name_mapping",
            )


def _graph_file(path: PathLike | None, graph_def: Any, folder: Path) -> Path:
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise ModelError(f"{file}: no such file")
        return file
    if not hasattr(graph_def, "SerializeToString"):
        raise UsageError(f"graph_def: found a {type(graph_def).__name__}; expected a GraphDef")
    file = folder / "model.pb"
    file.write_bytes(graph_def.SerializeToString(deterministic=True))
    return file


def _saved_model(
    path: PathLike | None,
    trackable: Any,
    inputs: tuple[TensorSpec, ...] | None,
    outputs: tuple[TensorSpec, ...] | None,
    folder: Path,
) -> Path:
    if path is not None:
        place = Path(path).expanduser()
        if not (place / "saved_model.pb").is_file():
            raise ModelError(f"{place}: not a SavedModel (no saved_model.pb)")
        return place
    place = folder / "savedmodel"
    save_trackable(trackable, place, inputs, outputs)
    return place


def save_trackable(
    trackable: Any,
    place: Path,
    inputs: Sequence[TensorSpec] | None,
    outputs: Sequence[TensorSpec] | None,
) -> None:
    """Save a trackable object as a SavedModel with the signature ``serving_default``.

    The signature is the object's own when it is a ``tf.function`` with an input signature, else one
    made from the spec: the object is called with its inputs by keyword, or by position where it has
    no such parameters. A file that holds only a random number is left out.

    Raises:
        ModelError: the object cannot be traced or saved.
    """
    from ..frameworks.base import first_line
    from ..frameworks.calling import name_outputs, takes_keywords
    from ..frameworks.tensorflow import SERVING_SIGNATURE, import_tensorflow

    tensorflow = import_tensorflow()
    signatures = None
    try:
        if callable(trackable) and inputs is not None and outputs is not None:
            names = [spec.name for spec in outputs]
            call = trackable.__call__
            by_keyword = takes_keywords(
                getattr(call, "python_function", call), [spec.name for spec in inputs]
            )

            def serve(**tensors: Any) -> dict[str, Any]:
                returned = trackable(**tensors) if by_keyword else trackable(*tensors.values())
                return name_outputs(returned, names, type(trackable).__name__)

            tensors = {
                spec.name: tensorflow.TensorSpec(
                    [dim if isinstance(dim, int) else None for dim in spec.shape or ()],
                    spec.dtype,
                    name=spec.name,
                )
                for spec in inputs
            }
            concrete = tensorflow.function(serve).get_concrete_function(**tensors)
            signatures = {SERVING_SIGNATURE: concrete}
        tensorflow.saved_model.save(trackable, str(place), signatures=signatures)
    except IngotError:
        raise
    except Exception as error:
        raise ModelError(
            f"{type(trackable).__name__}: TensorFlow cannot save it: {first_line(error)}"
        ) from error
    # TensorFlow reads a SavedModel without it, and its random UUID makes every package differ.
    (place / "fingerprint.pb").unlink(missing_ok=True)
