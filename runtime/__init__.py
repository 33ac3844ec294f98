"""Packages on disk, and models that run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .golden import Golden
    from .loading import load
    from .package import Package
    from .session import LoadedModel

__all__ = ["Golden", "LoadedModel", "Package", "load"]

_MODULES = {
    "Golden": "golden",
    "LoadedModel": "session",
    "Package": "package",
    "load": "loading",
}
"""Where each name is defined: checking hashes must not import NumPy."""


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
