"""Writes packages: one module a framework.

A new framework is one module with ``create_NAME_package`` and one line in ``PACKAGERS``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

PACKAGERS = {
    "create_keras_package": "keras",
    "create_ludwig_package": "ludwig",
    "create_onnx_package": "onnx",
    "create_python_package": "python",
    "create_pytorch_package": "python",
    "create_random_package": "random_stub",
    "create_tensorflow_package": "tensorflow",
    "create_torchscript_package": "torchscript",
}

if TYPE_CHECKING:
    from .keras import create_keras_package
    from .ludwig import create_ludwig_package
    from .onnx import create_onnx_package
    from .python import create_python_package, create_pytorch_package
    from .random_stub import create_random_package
    from .tensorflow import create_tensorflow_package
    from .torchscript import create_torchscript_package

__all__ = [
    "create_keras_package",
    "create_ludwig_package",
    "create_onnx_package",
    "create_python_package",
    "create_pytorch_package",
    "create_random_package",
    "create_tensorflow_package",
    "create_torchscript_package",
]


def __getattr__(name: str) -> Any:
    module = PACKAGERS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
