"""Ingot's own format: weights as safetensors, and a JSON spec that says whose weights they are.

The spec names the user's own code (PyTorch), or holds the record of the architecture (Keras), so
that every command takes it in place of the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ModelError, UsageError
from ..frameworks import ModelSource
from ..frameworks.base import file_sha256, first_line
from ..specs import ModelSpec
from ..specs.reading import MAX_JSON_BYTES
from ..specs.spec import FORMAT_VERSION
from .base import Draft, Job, Variant

_CARRIED = (
    "requirements",
    "platform_version_semver",
    "input_tensor_device",
    "default_input_tensor_device",
)
"""Keys of ``model`` that hold for the exported model, too."""


def export(job: Job, variants: Sequence[Variant]) -> list[Draft]:
    """Write ``STEM.json`` and ``STEM.safetensors``; the weights keep their type.

    Paths in the JSON file are relative to the folder of ``job.folder``, where it is delivered to.

    Raises:
        UsageError: the code of the model is that of a package, or makes no ``nn.Module``.
        ModelError: the model has state that safetensors cannot hold.
    """
    weights = job.folder / f"{job.stem}.safetensors"
    if job.source.framework == "keras":
        section, runner = _keras(job, weights)
    else:
        section, runner = _torch(job, weights)
    digest = file_sha256(weights)
    section |= {"weights": weights.name, "weights_sha256": digest} | _carried(job)
    document: dict[str, Any] = {"format_version": FORMAT_VERSION, "name": job.stem}
    if job.spec is not None and "license" in job.spec:
        document["license"] = job.spec["license"]
    document["model"] = section
    for name, specs in (("inputs", job.source.inputs), ("outputs", job.source.outputs)):
        document[name] = [spec.to_dict() for spec in specs or ()]
    path = job.folder / f"{job.stem}.json"
    path.write_text(_text(document, job), encoding="utf-8")
    runner = replace(runner, weights=weights, weights_sha256=digest, native=None)
    return [Draft(path, variants[0], runner, companions=(weights,))]


def _torch(job: Job, weights: Path) -> tuple[dict[str, Any], ModelSource]:
    import torch
    from safetensors.torch import save_file

    source, module = job.source, job.model.native
    if source.native is None and (source.data_root is not None or source.code_root is None):
        raise UsageError(
            f"{source.label}: its code lies in a package; this format names code in a folder",
            hint=f"unpack it first: ingot init {source.label}",
        )
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"{source.label}: the entry point returned a {type(module).__name__};"
            " only the state of a torch.nn.Module can be exported",
            hint="a callable can be packaged: ingot package",
        )
    try:
        save_file(_state(module), weights, metadata={"format": "pt"})
    except Exception as error:
        raise ModelError(
            f"{source.label}: its state cannot be written as safetensors: {first_line(error)}"
        ) from error
    section: dict[str, Any] = {"framework": "torch", "entrypoint": source.entrypoint}
    if source.entrypoint_kwargs:
        section["kwargs"] = dict(source.entrypoint_kwargs)
    if source.recipe is not None:
        section["recipe"] = dict(source.recipe)
    given = (job.spec or {}).get("model", {}).get("code_path_spec")
    # By default, a package takes what the entry point imports, not all that lies beside it.
    roots: list[Any] = given or []
    if not roots and source.code_root is not None:
        roots = [{"python_root": source.code_root, "dirs_to_package": []}]
    if roots:  # the class of a live module may lie in no file
        section["code_path_spec"] = [
            {
                "python_root": _relative(root["python_root"], job),
                "dirs_to_package": list(root.get("dirs_to_package", [""])),
            }
            for root in roots
        ]
    if source.data_files:
        section["data_paths"] = [
            {"path": _relative(path, job), "packaged_name": name}
            for name, path in source.data_files.items()
        ]
    return section, source


def _state(module: Any) -> dict[str, Any]:
    """Return the state of a module: every tensor on its own, contiguous, in the CPU's memory.

    Raises:
        TypeError: something in it is no tensor.
    """
    import torch

    state, seen = {}, set()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name!r} is a {type(value).__name__}; expected a tensor")
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # Tied weights, and views of one tensor.
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        state[name] = tensor
    return state


def _keras(job: Job, weights: Path) -> tuple[dict[str, Any], ModelSource]:
    from safetensors.numpy import save_file

    from ..frameworks.keras import import_keras
    from ..frameworks.keras_files import number_objects
    from ..frameworks.keras_weights import architecture_of, build, read_variables

    source, native, keras = job.source, job.model.native, import_keras()
    try:
        architecture = number_objects(architecture_of(native), {})
        rebuilt = build(architecture, keras)
    except Exception as error:
        raise ModelError(
            f"{source.label}: Keras {keras.__version__} cannot rebuild the model from its own"
            f" record: {first_line(error)}"
        ) from error
    variables = read_variables(native, rebuilt, source.label, keras)
    save_file(variables, weights, metadata={"format": "np"})
    section: dict[str, Any] = {"framework": "keras", "architecture": architecture}
    if source.node_name_mapping:
        section["node_name_mapping"] = dict(source.node_name_mapping)
    return section, replace(source, path=None, entrypoint=None, architecture=architecture)


def _carried(job: Job) -> dict[str, Any]:
    """Return the keys of ``model`` that both frameworks have and that hold further on."""
    model = (job.spec or {}).get("model", {})
    section = {name: model[name] for name in _CARRIED if name in model}
    if "requirements_lock" in model:
        section["requirements_lock"] = _relative(model["requirements_lock"], job)
    if job.source.custom_ops:
        if job.spec is None:
            raise UsageError(
                f"{job.source.label}: it carries custom operators in a package; this format names"
                " them in a folder",
                hint=f"unpack it first: ingot init {job.source.label}",
            )
        section["custom_ops"] = [_relative(path, job) for path in job.source.custom_ops]
    return section


def _relative(path: str | Path, job: Job) -> str:
    """Return a path relative to where the JSON file will lie; links on the way are resolved."""
    final = os.path.realpath(job.folder.parent)
    return Path(os.path.relpath(os.path.realpath(path), final)).as_posix()


def _text(document: dict[str, Any], job: Job) -> str:
    """Return the JSON text, whose order is that of the source: some code depends on it.

    Raises:
        UsageError: the arguments of the entry point are no JSON values.
        SpecError: it would be no valid spec.
    """
    try:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{job.source.label}: model.kwargs cannot be written as JSON: {first_line(error)}"
        ) from error
    if len(text.encode()) > MAX_JSON_BYTES:
        raise ModelError(
            f"{job.source.label}: its architecture takes {len(text.encode())} bytes as JSON;"
            f" expected at most {MAX_JSON_BYTES}"
        )
    ModelSpec.from_dict(document, job.folder.parent, check_files=False)
    return text
