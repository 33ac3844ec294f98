"""Locked packages in a cached folder of their own, for workers: ``INGOT_HOME/environments/HASH``.

The hash is that of the lock and of the kind of interpreter, so packages with the same lock share
one. A folder is filled by ``pip install --target`` beside its place and renamed into it: what is
there is whole. Builders exclude each other with a file lock; one that dies takes its pip with it,
and the next removes what it left.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ... import __version__
from ...errors import PackageError, UsageError
from ..home import ingot_home
from ..requirements import parse_lock
from .pip_install import counted, install_pins, normalised_name

MARKER = "environment.json"
"""What an environment says of itself: lock, interpreter, Ingot's version and size."""

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_ANSWER_SECONDS = 60
_WAITING = "waiting for another process that installs the same lock"

# The ABI is what a compiled module depends on: "cpython-311-x86_64-linux-gnu", "cpython-313t-...".
_DESCRIBE = """
import json, sys, sysconfig
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": "%d.%d" % sys.version_info[:2],
    "abi": sysconfig.get_config_var("SOABI") or sysconfig.get_config_var("EXT_SUFFIX"),
    "platform": sysconfig.get_platform(),
}))
"""


def environments_folder() -> Path:
    """Return where environments lie: ``INGOT_HOME/environments``."""
    return ingot_home() / "environments"


def install_lock(
    lock: str,
    python: Path | str,
    label: str,
    *,
    progress: Callable[[str], None] | None = None,
    root: Path | None = None,
) -> Path:
    """Install the locked packages for an interpreter, unless that has been done before.

    Installing may run code: that of a source distribution, when pip finds nothing better.

    Args:
        lock: ``name==version`` lines, as :func:`~ingot.runtime.requirements.parse_lock` takes
            them. It is complete: what the packages depend on is not looked for.
        python: the interpreter that will import them: a path, or a name on ``PATH``.
        label: what to call the package that has the lock in messages.
        progress: is called with what is being done, a line at a time; None logs it. What else
            pip prints is logged at level DEBUG.
        root: the folder of all environments; None takes :func:`environments_folder`.

    Returns:
        the folder that holds the packages, absolute; it belongs at the start of ``sys.path``.

    Raises:
        PackageError: the lock is malformed.
        UsageError: there is no such interpreter, or the folder cannot be written.
        MissingDependencyError: there is no pip, or it cannot install one of them.
    """
    pins = _canonical(lock, label)
    python = find_interpreter(python)
    tag = describe_interpreter(python)
    identity = {"lock": pins, "interpreter": tag}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    root = (environments_folder() if root is None else root).expanduser().absolute()
    folder = root / key
    say = progress or logging.getLogger("ingot").info
    try:
        if _is_complete(folder):
            return folder
        root.mkdir(parents=True, exist_ok=True)
        with _holding(root / f".{key}.lock", lambda: say(f"{label}: {_WAITING}")) as handle:
            if not _is_complete(folder):
                _remove_remains(root, key)
                where = f"{tag['implementation']} {tag['version']} in {folder}"
                say(f"{label}: installing {counted(pins)} for {where}")
                _build(folder, pins, python, label, identity, handle, say)
    except OSError as error:
        raise UsageError(
            f"{label}: its locked requirements cannot be installed in {root}:"
            f" {error.strerror or error}",
            hint="give a folder that can be written to: INGOT_HOME=DIR",
        ) from error
    return folder


def find_interpreter(python: Path | str) -> Path:
    """Return the absolute path of an interpreter; links are kept, as one may be that of a venv.

    Raises:
        UsageError: there is no such program.
    """
    found = shutil.which(os.path.expanduser(python))
    if found is None:
        raise UsageError(
            f"{python}: no such interpreter, or it cannot be run",
            hint="give the path of a Python, or its name on PATH",
        )
    return Path(found).absolute()


def describe_interpreter(python: Path) -> dict[str, str]:
    """Ask an interpreter for what an installed package depends on.

    Returns:
        ``implementation`` (``cpython``), ``version`` (``3.11``), ``abi`` and ``platform``.

    Raises:
        UsageError: it is no Python 3, or does not work.
    """
    command = [str(python), "-I", "-c", _DESCRIBE]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"{python}: no answer within {_ANSWER_SECONDS} s") from None
    except OSError as error:
        raise UsageError(f"{python}: cannot be run: {error.strerror or error}") from error
    printed = done.stdout.decode(errors="replace").splitlines()
    try:
        answer = json.loads(printed[-1])  # a sitecustomize may print, too
        return {
            name: str(answer[name]) for name in ("implementation", "version", "abi", "platform")
        }
    except (IndexError, KeyError, TypeError, ValueError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = f"it said {said[0]!r}" if said else f"it ended with status {done.returncode}"
        raise UsageError(f"{python}: expected an interpreter of Python 3; {reason}") from None


def _canonical(lock: str, label: str) -> list[str]:
    """Return the pins, sorted, with names as PEP 503 normalises them."""
    label = f"{label}: 0/requirements.lock"
    pins: dict[str, str] = {}
    for name, version in parse_lock(lock, label).items():
        # pip would take a "*" for any version.
        if not _VERSION.fullmatch(version):
            raise PackageError(f"{label}: {name}: found {version!r}; expected an exact version")
        known = pins.setdefault(normalised_name(name), version)
        if known != version:
            raise PackageError(f"{label}: {name}: locked twice, as {known} and as {version}")
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def _is_complete(folder: Path) -> bool:
    return (folder / MARKER).is_file()


@contextmanager
def _holding(path: Path, wait: Callable[[], None]) -> Iterator[int]:
    """Hold a file lock, and yield its descriptor; ``wait`` is called when another one holds it."""
    handle = _lock(path, block=False)
    if handle is None:
        wait()
        handle = _lock(path, block=True)
    assert handle is not None
    try:
        yield handle
    finally:
        _unlock(path, handle)


def _lock(path: Path, *, block: bool) -> int | None:
    """Lock a file that its holder removes in the end; None when it is taken and must not block."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
            # While this one waited, the holder may have removed the file, and another made it anew.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _unlock(path: Path, handle: int) -> None:
    path.unlink(missing_ok=True)  # before anybody else can have it
    os.close(handle)


def _remove_remains(root: Path, key: str) -> None:
    """Remove what killed builders left: of this environment, whose lock is held, and of others.

    What cannot be removed is in nobody's way, and left for the next.
    """
    for remains in sorted(root.glob(".*.part")):
        owner = remains.name.split(".")[1]
        if owner == key:
            shutil.rmtree(remains, ignore_errors=True)
            continue
        path = root / f".{owner}.lock"
        with suppress(PermissionError):  # of another user
            handle = _lock(path, block=False)
            if handle is not None:  # else it is being built
                shutil.rmtree(remains, ignore_errors=True)
                _unlock(path, handle)


def _build(
    folder: Path,
    pins: list[str],
    python: Path,
    label: str,
    identity: Mapping[str, object],
    handle: int,
    say: Callable[[str], None],
) -> None:
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", suffix=".part", dir=folder.parent, ignore_cleanup_errors=True
    ) as name:
        part = Path(name)
        packages, scratch = part / "packages", part / "tmp"
        packages.mkdir()
        scratch.mkdir()
        if pins:
            install_pins(pins, packages, scratch, python, label, say=say, keep=handle)
        files = [path for path in packages.rglob("*") if path.is_file()]
        about = {
            **identity,
            "created_with": f"ingot {__version__}",
            "size_bytes": sum(path.lstat().st_size for path in files),
        }
        (packages / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if folder.exists():  # somebody has removed a part of it
            folder.rename(part / "broken")
        packages.rename(folder)
