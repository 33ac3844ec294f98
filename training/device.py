"""Where a network runs."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

from ..errors import UsageError


class Device(StrEnum):
    """The kind of device; equal to its name as a text."""

    CPU = "CPU"
    GPU = "GPU"


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, and the quota of its container."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    if quota != "max":
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def as_device(value: str | Device) -> Device:
    """Read ``CPU`` or ``GPU`` (also ``cuda``), in any case.

    Raises:
        UsageError: it is neither.
    """
    name = str(value).upper().partition(":")[0]
    name = "GPU" if name == "CUDA" else name
    if name not in Device.__members__:
        raise UsageError(f"device: found {value!r}; expected CPU or GPU")
    return Device(name)
