"""What the workers of a model may use: CPUs, threads, memory and time."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError

START_SECONDS = 120.0
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


@dataclass(frozen=True)
class Isolation:
    """How a model runs in processes of its own.

    Attributes:
        python: the interpreter of the workers, a path or a name on PATH; None is this one.
        workers: how many processes, each with a copy of the model.
        timeout: seconds that one call may take; None has no limit.
        start_timeout: seconds that starting a worker and loading the model may take.
        memory_limit: bytes of memory of its own that a worker may use; None has no limit.
        cpus: numbers of the CPUs that the workers share; None leaves that to the system.
        install_lock: install the package's locked requirements for its workers.
    """

    python: str | None = None
    workers: int = 1
    timeout: float | None = None
    start_timeout: float = START_SECONDS
    memory_limit: int | None = None
    cpus: tuple[int, ...] | None = None
    install_lock: bool = False

    def __post_init__(self) -> None:
        if type(self.workers) is not int or self.workers < 1:
            raise UsageError(f"workers: found {self.workers!r}; expected 1 or more")
        for name in ("timeout", "start_timeout"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise UsageError(f"{name}: found {value!r}; expected more than 0 seconds")
        if self.memory_limit is not None and not Path("/proc/self/statm").exists():
            raise UsageError("memory_limit: this system does not tell what a process uses")
        if self.cpus is not None:
            _check_cpus(self.cpus)

    def interpreter(self) -> str:
        """Return the path of the workers' interpreter.

        Raises:
            UsageError: there is none.
        """
        if self.python is None:
            return sys.executable
        found = shutil.which(os.path.expanduser(self.python))
        if found is None:
            path = Path(self.python).expanduser()
            what = "is no program" if path.exists() else "no such interpreter"
            raise UsageError(
                f"python: {self.python}: {what}",
                hint=f"a folder of an environment? then {path / 'bin' / 'python'}"
                if path.is_dir()
                else None,
            )
        return os.path.abspath(found)

    def cpus_of(self, worker: int) -> tuple[int, ...] | None:
        """Return the CPUs of a worker (0-based): a share of its own where there are enough."""
        if self.cpus is None or len(self.cpus) < self.workers:
            return self.cpus
        share, rest = divmod(len(self.cpus), self.workers)
        start = worker * share + min(worker, rest)
        return self.cpus[start : start + share + (worker < rest)]

    def threads(self, asked: int | None) -> int | None:
        """Return the threads of one operator in a worker.

        Frameworks take a thread for each CPU; several workers that do so are much slower than one.

        Args:
            asked: what the user says; None when he does not.
        """
        if asked is not None or self.workers == 1 or "OMP_NUM_THREADS" in os.environ:
            return asked
        available = self.cpus if self.cpus is not None else available_cpus()
        return max(1, len(available) // self.workers)

    def environment(self, threads: int | None) -> Mapping[str, str]:
        """Return the environment variables of a worker.

        Args:
            threads: threads of one operator, which some frameworks read when they are imported.
        """
        found = dict(os.environ)
        if self.python is not None:  # modules of one interpreter mean nothing to another
            for name in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__"):
                found.pop(name, None)
        if threads is not None:
            found.update(dict.fromkeys(_THREADS, str(threads)))
        return found


def available_cpus() -> tuple[int, ...]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _check_cpus(cpus: tuple[int, ...]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("cpus: this system cannot pin processes to CPUs")
    available = available_cpus()
    for cpu in cpus:
        if cpu not in available:
            raise UsageError(
                f"cpus: found {cpu!r}; expected some of {', '.join(map(str, available))}"
            )
    if not cpus or len(set(cpus)) != len(cpus):
        raise UsageError(f"cpus: found {list(cpus)}; expected numbers, each one once")


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read a list of CPUs as ``taskset`` does: ``0,2-5``.

    Raises:
        UsageError: it is none.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or len(match[0]) > 12 or int(match[2] or match[1]) > 1 << 16:
            raise UsageError(f"cpus: found {text!r}; expected a list such as 0,2-5")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"cpus: found {part.strip()!r}; expected the smaller number first")
        found.extend(range(first, last + 1))
    return tuple(found)


def parse_size(value: int | str, key: str) -> int:
    """Read a number of bytes: an integer, or text such as ``512M``, ``2G`` or ``1.5GiB``.

    Raises:
        UsageError: it is none, or not above 0.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        size = int(float(match[1]) * _UNITS[match[2].lower()]) if match is not None else 0
    else:
        size = value if type(value) is int else 0
    if size <= 0:
        raise UsageError(f"{key}: found {value!r}; expected a size such as 512M or 2G")
    return size


def memory_of(pid: int) -> int:
    """Return the bytes of memory that are a process's own, not shared; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            _, resident, shared, *_ = file.read().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def describe_size(size: int) -> str:
    """Return a number of bytes with the unit that people read."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"
