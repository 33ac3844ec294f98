"""The adapter layer: one module a framework, behind the interface of :class:`base.Model`.

A new framework is one module with ``load(source, options) -> Model``, and one line in ``REGISTRY``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from ..errors import UsageError
from .base import LoadOptions, Model, ModelSource

__all__ = ["REGISTRY", "Framework", "LoadOptions", "Model", "ModelSource", "open_model"]


@dataclass(frozen=True)
class Framework:
    """What is known of a framework without importing it.

    Attributes:
        module: the adapter, a module of this folder.
        distributions: names under which it may be installed; the first found gives its version.
        runs_code: a model of it is Python code, which runs only when trusted.
        run_only: Ingot exports to it and runs it, but no spec or package holds such a model.
    """

    module: str
    distributions: tuple[str, ...]
    runs_code: bool = False
    run_only: bool = False


REGISTRY = {
    "torch": Framework("pytorch", ("torch",), runs_code=True),
    "torchscript": Framework("torchscript", ("torch",)),
    "tensorflow": Framework("tensorflow", ("tensorflow", "tensorflow-cpu", "tf-nightly")),
    "keras": Framework("keras", ("keras",)),
    "onnx": Framework("onnx", ("onnxruntime", "onnxruntime-gpu")),
    "python": Framework("python", (), runs_code=True),
    "ludwig": Framework("ludwig", ("ludwig",), runs_code=True),
    "pt2": Framework("pt2", ("torch",), run_only=True),
    "tflite": Framework("tflite", ("ai-edge-litert",), run_only=True),
    "openvino": Framework("openvino", ("openvino",), run_only=True),
}


def open_model(source: ModelSource, options: LoadOptions | None = None) -> Model:
    """Load a model with the adapter of its framework.

    Raises:
        ModelError: it cannot be loaded.
        MissingDependencyError: the framework is not installed.
        UsageError: the framework is unknown.
    """
    framework = REGISTRY.get(source.framework)
    if framework is None:
        raise UsageError(
            f"{source.label}: unknown framework {source.framework!r};"
            f" expected one of {', '.join(REGISTRY)}"
        )
    adapter = import_module(f".{framework.module}", __name__)
    model: Model = adapter.load(source, options or LoadOptions())
    return model


def installed_version(name: str) -> str | None:
    """Return the installed version of a framework without importing it; None when it is missing.

    The version of ``python`` is the interpreter's.
    """
    import platform
    from importlib import metadata

    if name == "python":
        return platform.python_version()
    for distribution in REGISTRY[name].distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
