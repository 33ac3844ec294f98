"""What the processor can do that decides how integer kernels compute."""

from __future__ import annotations

import platform
from pathlib import Path

_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimddp",
    "i8mm",
)
"""Instruction sets that integer kernels choose between, as Linux names them."""
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Those of x86 whose products of 8-bit integers do not saturate 16-bit sums."""
_CPUINFO = Path("/proc/cpuinfo")


def cpu_features() -> dict[str, object]:
    """Return the machine, and those of its instruction sets that integer kernels choose between.

    ``features`` is None where the system does not tell.
    """
    features = None
    if _CPUINFO.is_file():
        text = _CPUINFO.read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "feat"))]
        found = set(lines[0].partition(":")[2].split()) if lines else set()
        features = [name for name in _FLAGS if name in found]
    return {"machine": platform.machine(), "features": features}


def may_saturate(cpu: dict[str, object]) -> bool:
    """Whether 8-bit products may saturate on a processor: x86 without VNNI."""
    features = cpu["features"]
    is_x86 = cpu["machine"] in ("x86_64", "AMD64", "i686")
    return is_x86 and isinstance(features, list) and not any(name in features for name in VNNI)
