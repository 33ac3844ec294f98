"""Pruned models on disk: a spec with a channel recipe, ``STEM.json``, beside its weights."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...errors import ModelError, OutputExistsError
from ...frameworks.base import check_weights
from ...runtime.sources import source_from_spec
from ...specs import ModelSpec, load_spec
from .modules import copy_module
from .recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from ...frameworks import ModelSource


def save_compressed(
    path: str | Path,
    module: nn.Module,
    recipe: Recipe,
    spec: ModelSpec,
    *,
    source: ModelSource | None = None,
    force: bool = False,
) -> tuple[Path, Path]:
    """Write a pruned (and trained) module in Ingot's own format.

    The JSON file is a spec, so every command takes it: it names the code of ``spec``, relative to
    itself. If that model had been pruned before, the recipes are composed.

    Args:
        path: ``STEM``, ``STEM.json`` or ``STEM.safetensors``; the folder has to exist.
        module: what :func:`.prune.prune` returned.
        recipe: likewise.
        spec: of the model that was pruned.
        source: where that comes from, when it is no entry point but a live module.
        force: replace files that are there.

    Returns:
        the JSON file and the weights.

    Raises:
        OutputExistsError: one of them is there.
        UsageError: the code of the model lies in a package.
        ModelError: the module has state that safetensors cannot hold.
    """
    from ...exporters import Job, own
    from ...exporters.base import Variant

    target, weights = _files(path)
    for file in (target, weights):
        if file.exists() and not force:
            raise OutputExistsError(f"{file}: is there already", hint="force=True replaces it")
    if spec.model.recipe is not None:
        recipe = Recipe.from_dict(spec.model.recipe).then(recipe)
    source = replace(source or source_from_spec(spec), recipe=recipe.to_dict())
    folder = Path(tempfile.mkdtemp(prefix=".ingot-", dir=target.parent.absolute()))
    try:
        held: Any = SimpleNamespace(native=module)
        job = Job(source, held, target.stem, folder, spec=spec.to_dict())
        own.export(job, [Variant(None, source.inputs or (), source.outputs or (), {})])
        os.replace(folder / weights.name, weights)
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target, weights


def load_compressed(path: str | Path, original_model: nn.Module) -> nn.Module:
    """Return a compressed model as an instance of the user's own class.

    Args:
        path: the result's ``STEM.json``, or the ``.safetensors`` or a ``.pkl`` name beside it.
        original_model: the network before it was compressed, built as ever; it stays as it is, and
            its weights do not matter.

    Returns:
        a copy of it, with fewer channels and the weights of the file, in eval mode.

    Raises:
        SpecError: the file is not there, or is no spec.
        ModelError: it belongs to another network, or its weights were changed since.
    """
    from ...frameworks.pytorch import load_weights
    from ...frameworks.torch_recipe import apply_recipe

    target, _ = _files(path)
    if Path(path).suffix == ".pkl" and not target.exists():
        raise ModelError(
            f"{path}: a pickle may hold any code, and is never loaded; found no {target.name}"
            " beside it",
            hint="compress the model with Ingot, which writes JSON and safetensors",
        )
    spec = load_spec(target)
    source = source_from_spec(spec)
    if source.framework != "torch" or source.weights is None:
        raise ModelError(f"{target}: expected a PyTorch model with weights in this format")
    check_weights(source)
    module = copy_module(original_model)
    if source.recipe is not None:
        apply_recipe(module, source.recipe, source.label)
    load_weights(module, source.weights, source.label)
    return module.eval()


def _files(path: str | Path) -> tuple[Path, Path]:
    path = Path(path).expanduser()
    if path.suffix in (".json", ".safetensors", ".pkl"):
        path = path.with_suffix("")
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.safetensors")
