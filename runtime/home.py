"""Where Ingot keeps what has no place of its own: runs, studies, locked packages."""

from __future__ import annotations

import os
from pathlib import Path


def ingot_home() -> Path:
    """Return the folder: ``INGOT_HOME``, else ``~/.ingot``. It need not exist."""
    return Path(os.environ.get("INGOT_HOME") or "~/.ingot").expanduser()
