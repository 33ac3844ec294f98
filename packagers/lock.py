"""Compiles requirements into a lock with pip; the only place where packaging uses the network."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelError


def compile_requirements(requirements: str | Sequence[str]) -> str:
    """Resolve requirements, with everything that they need, into exact pins.

    Args:
        requirements: lines of a requirements file, or its text.

    Returns:
        sorted ``name==version`` lines. Local versions (``+cpu``) are dropped: no index has them.

    Raises:
        ModelError: pip cannot resolve them.
    """
    lines = requirements.splitlines() if isinstance(requirements, str) else list(requirements)
    wanted = [line for line in lines if line.split("#")[0].strip()]
    if not wanted:
        return _header([])
    with tempfile.TemporaryDirectory(prefix="ingot-lock-") as folder:
        source, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        source.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        process = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"),
                *("--quiet", "--disable-pip-version-check", "--report", str(report)),
                *("--requirement", str(source)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode or not report.exists():
            errors = [line for line in process.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1] if errors else f"pip ended with status {process.returncode}"
            raise ModelError(f"requirements: pip cannot resolve them: {reason}")
        resolved = json.loads(report.read_text(encoding="utf-8"))["install"]
    pins = [
        f"{entry['metadata']['name'].lower()}=={entry['metadata']['version'].split('+')[0]}"
        for entry in resolved
    ]
    return _header(wanted) + "".join(f"{pin}\n" for pin in sorted(pins))


def _header(wanted: Sequence[str]) -> str:
    return "".join(f"# required: {line.strip()}\n" for line in wanted)
