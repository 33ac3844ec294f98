"""How long the command line takes to start, against Python importing only click.

Each run is a process of its own: the installed ``ingot`` script beside this Python. The target is
2.5 times ``python -c "import click"``.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import print_table, quotient, seconds_of, take_turns

ROUNDS = 21
TARGET = 2.5
COMMANDS = (("--help",), ("--version",), ("package", "--help"), ("infer", "--help"))
REQUIRED = {("--help",), ("package", "--help")}


def process(*arguments: str, folder: str) -> Callable[[], float]:
    """Return a function that runs a process to its end and returns the seconds that it took."""
    return seconds_of(
        lambda: subprocess.run(arguments, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    )


def main() -> None:
    script = Path(sysconfig.get_path("scripts"), "ingot")
    if not script.exists():
        sys.exit(f"{script}: found nothing there; install Ingot into this environment first")
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "python -c pass": process(sys.executable, "-c", "pass", folder=folder),
            "import click": process(sys.executable, "-c", "import click", folder=folder),
        }
        for command in COMMANDS:
            contenders[" ".join(command)] = process(str(script), *command, folder=folder)
        found = take_turns(contenders, ROUNDS)
    rows = [
        quotient(
            f"ingot {' '.join(command)}",
            1e3 * found[" ".join(command)],
            1e3 * found["import click"],
            "ms",
            TARGET if command in REQUIRED else None,
        )
        for command in COMMANDS
    ]
    print_table(rows)
    print(
        f"alternative: python -c 'import click'; bare Python {1e3 * found['python -c pass']:.3g} ms"
    )


if __name__ == "__main__":
    main()
