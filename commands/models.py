"""Opens what a user names as a model: a spec, a package, or a bare model file."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..specs import ModelSpec, load_spec

if TYPE_CHECKING:
    import numpy as np

    from ..frameworks import ModelSource

    Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class NamedModel:
    """A model that a user named.

    Attributes:
        name: the model's name.
        source: where it comes from.
        golden: golden inputs; empty when there are none.
        spec: its spec, when it is one.
        sha256: hash of its file, or of its weights; of its spec when it has neither.
    """

    name: str
    source: ModelSource
    golden: Arrays
    spec: ModelSpec | None
    sha256: str


@contextmanager
def named_model(
    model: str | Path | ModelSpec | NamedModel,
    overrides: Sequence[str] = (),
    trust_code: bool = False,
) -> Iterator[NamedModel]:
    """Open a model; what a package holds is extracted for as long as the context lasts.

    Raises:
        SpecError: the spec is invalid.
        UsageError: overrides are given, and it is no spec.
        ModelError: it cannot be read, or carries code and is not trusted.
    """
    from ..runtime.detect import bare_source, detect, expand
    from ..runtime.package import Package

    if isinstance(model, NamedModel):
        yield model
        return
    if isinstance(model, ModelSpec):
        yield _of_spec(model)
        return
    path = expand(model)
    kind = detect(path)
    if kind == "spec":
        yield _of_spec(load_spec(path, overrides))
        return
    if overrides:
        raise UsageError(f"{path}: --set changes a spec; found a {kind}")
    if kind != "package":
        source = replace(bare_source(path.absolute(), kind), label=str(path))
        name = path.resolve().name if path.is_dir() else path.stem
        yield NamedModel(name, source, {}, None, tree_sha256(path))
        return
    with Package(path) as package, tempfile.TemporaryDirectory(prefix="ingot-") as folder:
        package.require_trust(trust_code)
        golden = package.golden(trust_code)
        package.reader.extract(Path(folder), "0/")
        source = replace(package.source(Path(folder)), label=str(path))
        inputs = {} if golden is None else dict(golden.inputs)
        yield NamedModel(package.config.name, source, inputs, None, tree_sha256(path))


def _of_spec(spec: ModelSpec) -> NamedModel:
    from ..runtime.golden import read_npz, restore_dtype
    from ..runtime.sources import source_from_spec

    source = source_from_spec(spec)
    golden: dict[str, Any] = {}
    if spec.test is not None and spec.test.inputs is not None:
        arrays = read_npz(spec.test.inputs, str(spec.test.inputs))
        golden = {
            name: restore_dtype(array, name, spec.inputs or ()) for name, array in arrays.items()
        }
    place = source.path or source.weights or spec.path
    return NamedModel(spec.name, source, golden, spec, "" if place is None else tree_sha256(place))


def tree_sha256(path: Path) -> str:
    """Return the sha256 of a file; of a folder, that of its files' names and hashes, sorted."""
    if path.is_file():
        from ..frameworks.base import file_sha256

        return file_sha256(path)
    whole = hashlib.sha256()
    for file_path in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        name = file_path.relative_to(path).as_posix()
        whole.update(f"{tree_sha256(file_path)}  {name}\n".encode())
    return whole.hexdigest()


def tree_size(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
