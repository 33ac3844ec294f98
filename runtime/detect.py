"""Tells what a path holds: a spec, a package, or a bare model file of some framework."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from ..errors import ModelError, SpecError, UsageError
from ..frameworks import REGISTRY, ModelSource
from ..frameworks.base import is_zip

SPEC_SUFFIXES = (".yaml", ".yml", ".json", ".toml")

_ZIP_START = b"PK\x03\x04"
_TFLITE_START = b"TFL3"
_OPENVINO_START = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<net\s", re.DOTALL)


def expand(path: str | Path) -> Path:
    """Return a path with ``~`` and ``~user`` replaced.

    Raises:
        ModelError: there is no such user, or no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ModelError(f"{path}: no such file or folder: found no home of this user") from error


def is_spec(path: Path) -> bool:
    """Whether a path is meant as a spec file, by its suffix."""
    return path.suffix.lower() in SPEC_SUFFIXES and not path.is_dir()


def detect(path: Path) -> str:
    """Return ``spec``, ``package``, or the framework of a bare model, by what is found.

    Raises:
        ModelError: nothing is there, or nothing that Ingot knows.
    """
    try:
        return _detect(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def _detect(path: Path) -> str:
    if not path.exists():
        message = f"{path}: no such file or folder"
        raise SpecError(message) if is_spec(path) else ModelError(message)
    if path.is_dir():
        return _detect_folder(path)
    if is_spec(path) and not path.is_file():  # a pipe can be read only once
        return "spec"
    with path.open("rb") as file:
        start = file.read(4096)
    # Before the suffix is asked: a package is one under every name.
    if is_zip(path):
        return _detect_zip(path)
    if is_spec(path) and start[:4] != _ZIP_START:
        return "spec"
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return "onnx"
    if suffix == ".keras":
        return "keras"
    if suffix in (".pt", ".pth", ".ts", ".jit") or start[:1] == b"\x80":
        return "torchscript"
    if suffix == ".pt2":
        return "pt2"
    if suffix == ".tflite" or start[4:8] == _TFLITE_START:
        return "tflite"
    if suffix == ".xml" and _OPENVINO_START.match(start.removeprefix(b"\xef\xbb\xbf")):
        return "openvino"
    if suffix in (".pb", ".safetensors"):
        kind, need = {
            ".pb": ("a TensorFlow graph", "node_name_mapping, inputs and outputs"),
            ".safetensors": ("weights", "the code of their model"),
        }[suffix]
        raise ModelError(
            f"{path}: {kind} alone cannot be run", hint=f"write a spec that names {need}"
        )
    if start[:4] == _ZIP_START:
        raise ModelError(f"{path}: a truncated or damaged zip archive; expected a package")
    raise ModelError(
        f"{path}: not a package, nor a model file that Ingot knows"
        " (ONNX, TorchScript, .keras, SavedModel, .pt2, .tflite, OpenVINO)"
    )


def _detect_folder(path: Path) -> str:
    # A package first: taken for anything else, its hashes and --trust-code would not be asked for.
    if (path / "config.json").is_file() and (path / "0").is_dir():
        return "package"
    if (path / "saved_model.pb").is_file():
        return "tensorflow"
    if (path / "model_hyperparameters.json").is_file():
        return "ludwig"
    if (path / "config.json").is_file() or (path / "0").is_dir():
        return "package"
    raise ModelError(
        f"{path}: not a package (no config.json), nor a SavedModel (no saved_model.pb),"
        " nor a Ludwig model"
    )


def _detect_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: a damaged zip archive: {error}") from error
    if "config.json" in names and any(name.startswith("0/") for name in names):
        return "package"
    if "model.weights.h5" in names or {"metadata.json", "config.json"} <= names:
        return "keras"
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return "pt2"
    if inner & {"constants.pkl", "data.pkl", "model.json"} and "config.json" not in names:
        return "torchscript"
    return "package"


def refuse_run_only(path: str | Path, framework: str) -> None:
    """Refuse a bare model of a kind that Ingot runs, but that no spec or package holds.

    Raises:
        UsageError: it is one.
    """
    if REGISTRY[framework].run_only:
        raise UsageError(
            f"{path}: a file of the format {framework}, which Ingot runs but does not package;"
            " expected the model that it was exported from",
            hint=f"this file runs as it is: ingot infer {path}",
        )


def bare_source(path: Path, framework: str) -> ModelSource:
    """Describe a bare model file to its adapter, which reads inputs and outputs off the model."""
    return ModelSource(framework=framework, label=str(path), path=path)
