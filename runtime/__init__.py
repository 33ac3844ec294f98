"""Packages on disk, and models that run."""

from __future__ import annotations

from .golden import Golden
from .package import Package
from .session import LoadedModel, load

__all__ = ["Golden", "LoadedModel", "Package", "load"]
