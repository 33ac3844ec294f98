"""SavedModel folders, from Keras, from a GraphDef, or as a copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelError
from .base import Draft, Job, Variant, converting


def export(job: Job, variants: Sequence[Variant]) -> list[Draft]:
    """Write ``STEM_savedmodel``, whose signature has the names of the spec.

    Raises:
        ModelError: TensorFlow cannot save the model, or a link leads out of its folder.
    """
    variant = variants[0]
    path = job.folder / f"{job.stem}_savedmodel"
    with converting(job.source.label, "TensorFlow"):
        if job.source.framework == "keras":
            from ..packagers.keras import save_savedmodel

            save_savedmodel(job.model, path, variant.inputs, variant.outputs)
        elif job.source.path is not None and job.source.path.is_dir():
            _copy(job.source.path, path, job.source.label)
        else:
            _from_graph(job, path)
    runner = job.runner("tensorflow", path)
    return [Draft(path, variant, runner)]


def _copy(source: Path, target: Path, label: str) -> None:
    """Copy a SavedModel folder; links to files of its own become files.

    Raises:
        ModelError: a link leads elsewhere: its target would be handed over with the model.
    """
    root = Path(os.path.realpath(source))

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=fail):
        place = Path(folder).relative_to(root)
        (target / place).mkdir()
        for name in (*folders, *files):
            if not os.path.islink(root / place / name):
                continue
            end = Path(os.path.realpath(root / place / name))
            if not end.is_relative_to(root) or not end.is_file():
                leads = "to no file" if end.is_relative_to(root) else "out of the folder"
                raise ModelError(
                    f"{label}: the link {(place / name).as_posix()!r} leads {leads}",
                    hint="put a copy of what it leads to in its place",
                )
        for name in files:
            # A random number, which nothing reads.
            if place / name != Path("fingerprint.pb"):
                shutil.copyfile(root / place / name, target / place / name)


def _from_graph(job: Job, path: Path) -> None:
    """Save a frozen copy of the graph under a signature of the spec's names."""
    from typing import Any

    import tensorflow

    from ..frameworks.tensorflow import SERVING_SIGNATURE

    model: Any = job.model
    graph_def = model.frozen_graph_def()
    v1 = tensorflow.compat.v1
    wrapped = v1.wrap_function(lambda: v1.import_graph_def(graph_def, name=""), [])

    def tensor(name: str) -> Any:
        return wrapped.graph.get_tensor_by_name(model.nodes[name].name)

    pruned = wrapped.prune(
        {spec.name: tensor(spec.name) for spec in model.inputs},
        {spec.name: tensor(spec.name) for spec in model.outputs},
    )
    served = tensorflow.Module()
    served.pruned = pruned
    tensorflow.saved_model.save(served, str(path), signatures={SERVING_SIGNATURE: pruned})
    (path / "fingerprint.pb").unlink(missing_ok=True)
