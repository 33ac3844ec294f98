"""The command line: ``ingot COMMAND ...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; the entry point of the ``ingot`` script."""
    from .app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))
