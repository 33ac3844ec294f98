"""``inspect``: what is inside a package or a model file, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.package import Package
    from ..specs import TensorSpec


def inspect(model: str | Path) -> dict[str, Any]:
    """Describe a package, a spec or a bare model file.

    Nothing of a package is run, and no framework is needed for it; a bare model file is opened by
    its framework, which reads its inputs and outputs.

    Args:
        model: a package, a bare model file, or a spec.

    Returns:
        JSON values: ``kind`` (``package``, ``spec`` or ``model``), ``path`` (absolute), ``name``,
        ``framework``, ``inputs``, ``outputs``, and what the kind has besides.

    Raises:
        ModelError: it cannot be read.
        MissingDependencyError: a bare model file, and its framework is not installed.
    """
    from ..runtime.detect import detect, expand

    path = expand(model)
    kind = detect(path)
    if kind == "package":
        from ..runtime.package import Package

        with Package(path, check_hashes=False) as opened:
            return _package(opened)
    if kind == "spec":
        return _spec(path)
    return _bare(path, kind)


def requirements(model: str | Path) -> str:
    """Return the requirements lock of a package.

    Raises:
        ModelError: it is no package, or carries no lock.
    """
    from ..errors import ModelError
    from ..runtime.detect import expand
    from ..runtime.package import LOCK_FILE, Package

    with Package(expand(model)) as package:
        if package.lock is None:
            raise ModelError(f"{model}: carries no requirements lock (no {LOCK_FILE})")
        return package.lock


def _package(package: Package) -> dict[str, Any]:
    from ..frameworks.base import file_sha256
    from ..runtime.package import GOLDEN_FILES

    config, reader = package.config, package.reader
    manifest = reader.manifest
    extras = dict(config.extras)
    return {
        "kind": "package",
        "path": str(package.path.absolute()),
        "name": config.name,
        "framework": package.framework,
        "platform": config.platform,
        "platform_version_semver": config.platform_version_semver,
        "container": "directory" if reader.is_directory else "zip",
        "size_bytes": reader.total_size if reader.is_directory else package.path.stat().st_size,
        "unpacked_bytes": reader.total_size,
        "sha256": None if reader.is_directory else file_sha256(package.path),
        "format_version": extras.get("format_version"),
        "written_by": "Ingot" if package.written_by_ingot else "Neuropod",
        "inputs": [spec.to_dict() for spec in config.inputs],
        "outputs": [spec.to_dict() for spec in config.outputs],
        "input_tensor_device": dict(config.input_tensor_device),
        "custom_ops": list(config.custom_ops),
        "runs_code": package.runs_code(),
        "requirements": None if package.lock is None else package.lock.splitlines(),
        "golden_file": next((name for name in GOLDEN_FILES if reader.has(name)), None),
        **_golden(package),
        "provenance": extras.get("provenance"),
        "license": extras.get("license"),
        "files": [
            {
                "name": name,
                "size_bytes": reader.size(name),
                "packed_bytes": reader.compressed_size(name),
                "sha256": None if manifest is None else manifest.get(name),
            }
            for name in reader.names
        ],
    }


def _golden(package: Package) -> dict[str, Any]:
    """Describe the golden data; what cannot be read is said, so that all else is still shown."""
    from ..errors import ModelError
    from ..runtime.golden import DEFAULT_ATOL, DEFAULT_RTOL

    try:
        headers = package.golden_headers()
    except ModelError as error:
        return {"golden": None, "golden_error": error.message}
    if headers is None:
        return {"golden": None, "golden_error": None}
    config, test = package.config, package.config.extras.get("test", {})
    described: dict[str, Any] = {
        "rtol": float(test.get("rtol", DEFAULT_RTOL)),
        "atol": float(test.get("atol", DEFAULT_ATOL)),
    }
    for key, prefix, specs in (
        ("inputs", "input/", config.inputs),
        ("outputs", "output/", config.outputs),
    ):
        described[key] = {
            name.removeprefix(prefix): {
                "dtype": _dtype(dtype, name.removeprefix(prefix), specs),
                "shape": list(shape),
            }
            for name, (dtype, shape) in headers.items()
            if name.startswith(prefix)
        }
    return {"golden": described, "golden_error": None}


def _dtype(dtype: np.dtype[Any], name: str, specs: Sequence[TensorSpec]) -> str:
    if dtype.kind == "U":
        return "string"
    # How .npy stores bfloat16, for which NumPy has no name.
    if dtype.str == "|V2" and any((spec.name, spec.dtype) == (name, "bfloat16") for spec in specs):
        return "bfloat16"
    return dtype.name


def _spec(path: Path) -> dict[str, Any]:
    from ..specs import load_spec

    spec = load_spec(path)
    return {
        "kind": "spec",
        "path": str(path.absolute()),
        "name": spec.name,
        "framework": spec.model.framework,
        "inputs": None if spec.inputs is None else [entry.to_dict() for entry in spec.inputs],
        "outputs": None if spec.outputs is None else [entry.to_dict() for entry in spec.outputs],
        "license": spec.license,
    }


def _bare(path: Path, framework: str) -> dict[str, Any]:
    from ..frameworks.base import file_sha256
    from ..runtime.child import run_source
    from ..runtime.detect import bare_source

    found = run_source(bare_source(path, framework), None)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {
        "kind": "model",
        "path": str(path.absolute()),
        "name": path.stem,
        "framework": framework,
        "size_bytes": sum(file.stat().st_size for file in files),
        "sha256": file_sha256(path) if path.is_file() else None,
        "inputs": [spec.to_dict() for spec in found.inputs],
        "outputs": [spec.to_dict() for spec in found.outputs],
    }
