"""Shared libraries that add operators to a framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .base import file_sha256, first_line

_loaded: set[tuple[str, str]] = set()


def load_once(
    paths: Sequence[Path], framework: str, load: Callable[[str], Any], label: str
) -> None:
    """Load each library unless one of the same content was loaded before in this process.

    Two packages may carry the same library: registering its operators twice is an error in most
    frameworks, so the content decides and not the path.

    Raises:
        ModelError: a library cannot be loaded.
    """
    for path in paths:
        key = (framework, file_sha256(path))
        if key in _loaded:
            continue
        try:
            load(str(path))
        except Exception as error:
            raise ModelError(
                f"{label}: the custom operator library {path.name} cannot be loaded:"
                f" {first_line(error)}"
            ) from error
        _loaded.add(key)
