"""What ``init`` can start from: model files and folders, packages, and code."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, UsageError

if TYPE_CHECKING:
    from ..frameworks import ModelSource

_FILE_KEYS = {"onnx": "file", "keras": "file", "torchscript": "file", "ludwig": "directory"}
CODE = ("torch", "python")
"""Frameworks whose models are code."""


@dataclass(frozen=True)
class Origin:
    """Where a spec is made from.

    Attributes:
        source: the model, for its adapter.
        name: the model's name.
        unpacked: the folder that a package was unpacked into, or None.
        lock: the requirements lock of a package, or None.
    """

    source: ModelSource
    name: str
    unpacked: Path | None = None
    lock: Path | None = None


def find_origin(
    model: str, framework: str | None, root: Path | None, weights: Path | None
) -> Origin | None:
    """Describe a bare model or code; None for a package, which has to be unpacked first.

    Raises:
        ModelError: it is nothing that Ingot knows.
        UsageError: it is a spec already, or the options do not fit it.
    """
    from ..frameworks import ModelSource
    from ..runtime.detect import bare_source, detect, expand, refuse_run_only
    from ..specs.declare import ENTRYPOINT

    path = expand(model)
    if re.match(ENTRYPOINT, model) and not path.exists():
        module, _, _ = model.partition(":")
        framework = framework or "torch"
        if weights is not None and framework != "torch":
            raise UsageError(f"{model}: --weights goes with PyTorch code; found {framework}")
        for option, found, exists in (
            ("--root", root, root is None or root.is_dir()),
            ("--weights", weights, weights is None or weights.is_file()),
        ):
            if not exists:
                raise UsageError(f"{option} {found}: no such {_kind(option)}")
        source = ModelSource(
            framework,
            model,
            entrypoint=model,
            code_root=(root or Path()).expanduser().absolute(),
            weights=None if weights is None else weights.absolute(),
        )
        return Origin(source, module.rpartition(".")[2])
    for option, value in (("--root", root), ("--weights", weights), ("--framework", framework)):
        if value is not None:
            raise UsageError(
                f"{model}: {option} goes with code (module:factory); found something else",
                hint=None if ":" in model else f"a factory is named like {path.stem}:build",
            )
    absolute = path.absolute()
    name = path.resolve().name if path.is_dir() else path.stem
    if path.suffix.lower() == ".pb" and path.is_file():
        return Origin(ModelSource("tensorflow", model, path=absolute), name)
    try:
        kind = detect(path)
    except ModelError as error:
        if not path.exists() and ":" in model:
            raise ModelError(
                f"{model}: no such file or folder, nor the form module:factory"
            ) from None
        raise error
    if kind == "spec":
        raise UsageError(f"{model}: it is a spec already; expected a model")
    if kind == "package":
        return None
    refuse_run_only(model, kind)
    return Origin(replace(bare_source(absolute, kind), label=model), name)


def _kind(option: str) -> str:
    return "folder" if option == "--root" else "file"


def unpack(model: str, folder: Path, trust_code: bool) -> Origin:
    """Unpack a package for a spec that names its parts.

    Args:
        model: the package.
        folder: an empty folder; the files go below its ``0``.
        trust_code: the package may run code that it carries.

    Raises:
        ModelError: it is damaged, or carries code and is not trusted.
    """
    from ..runtime.package import LOCK_FILE, Package

    with Package(Path(model).expanduser()) as package:
        package.require_trust(trust_code)
        package.reader.extract(folder, "0/")
        source = replace(package.source(folder), label=model)
        name, has_lock = package.config.name, package.lock is not None
    if source.entrypoint is not None:
        # The wrapper is the package's own: packaging the spec adds it anew.
        for name in ("ingot_entry.py", "ingot_recipe.py")[: 1 if source.recipe is None else 2]:
            (folder / "0" / "code" / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "0" / "code" / "__pycache__", ignore_errors=True)
    lock = folder / LOCK_FILE if has_lock else None
    return Origin(source, re.sub(r"[/\\\x00-\x1f\x7f]", "_", name), folder / "0", lock)


def model_section(origin: Origin, source: ModelSource, place: Path, spec: Path) -> dict[str, Any]:
    """Return the section ``model`` of a spec.

    Args:
        origin: where it is made from.
        source: the model, with what was found out about it.
        place: where the unpacked folder of a package will lie.
        spec: the folder of the spec, which paths are relative to.
    """

    def relative(path: Path) -> str:
        if origin.unpacked is not None and path.is_relative_to(origin.unpacked):
            path = place / path.relative_to(origin.unpacked)
        return Path(os.path.relpath(path, spec)).as_posix()

    section: dict[str, Any] = {"framework": source.framework}
    if source.entrypoint is not None:
        section["entrypoint"] = source.entrypoint
        section |= _code(source, relative, spec, origin)
    elif source.path is not None:
        key = _FILE_KEYS.get(source.framework)
        key = key or ("saved_model" if source.path.is_dir() else "graph")
        section[key] = relative(source.path)
    if source.node_name_mapping:
        section["node_name_mapping"] = dict(source.node_name_mapping)
    if source.init_op_names:
        section["init_op_names"] = list(source.init_op_names)
    if source.custom_ops:
        section["custom_ops"] = [relative(path) for path in source.custom_ops]
    return section


def _code(source: ModelSource, relative: Any, spec: Path, origin: Origin) -> dict[str, Any]:
    section: dict[str, Any] = {}
    if source.entrypoint_kwargs:
        section["kwargs"] = dict(source.entrypoint_kwargs)
    if source.weights is not None:
        section["weights"] = relative(source.weights)
    if source.recipe is not None:
        section["recipe"] = dict(source.recipe)
    root = source.code_root
    if root is not None and root.resolve() != spec.resolve():
        section["code_path_spec"] = [{"python_root": relative(root), "dirs_to_package": [""]}]
    if source.data_root is not None:
        files = sorted(file for file in _files(source.data_root) if file != source.weights)
        if files:
            section["data_paths"] = [
                {
                    "path": relative(file),
                    "packaged_name": file.relative_to(source.data_root).as_posix(),
                }
                for file in files
            ]
    if origin.lock is not None:
        section["requirements_lock"] = relative(origin.lock)
    return section


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
