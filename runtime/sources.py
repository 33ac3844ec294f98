"""Turns a model spec into what the adapter layer needs to load the model."""

from __future__ import annotations

from pathlib import Path

from ..frameworks import ModelSource
from ..specs import ModelSpec


def source_from_spec(spec: ModelSpec) -> ModelSource:
    """Describe the model of a spec to its adapter."""
    model = spec.model
    code_root = None
    if model.entrypoint is not None:
        code_root = model.code_path_spec[0].python_root if model.code_path_spec else spec.root
    return ModelSource(
        framework=model.framework,
        label=spec_label(spec),
        inputs=spec.inputs,
        outputs=spec.outputs,
        path=model.file or model.graph or model.saved_model or model.directory,
        entrypoint=model.entrypoint,
        entrypoint_kwargs=model.kwargs,
        code_root=code_root,
        data_files={data.packaged_name: data.path for data in model.data_paths},
        weights=model.weights,
        weights_sha256=model.weights_sha256,
        recipe=model.recipe,
        architecture=model.architecture,
        node_name_mapping=model.node_name_mapping,
        init_op_names=model.init_op_names,
        custom_ops=model.custom_ops,
    )


def spec_label(spec: ModelSpec) -> str:
    """What messages call the model: its spec, relative to the current folder when it is below."""
    if spec.path is None:
        return spec.name
    return shown_path(spec.path.absolute())


def shown_path(path: str | Path) -> str:
    """What messages call a file: its path, relative to the current folder when it is below."""
    folder, path = Path.cwd(), Path(path)
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
