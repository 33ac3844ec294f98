"""Runs pip for an interpreter: exact requirements into a folder, and its errors in one line."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from ...errors import MissingDependencyError

# Runs pip until its parent is gone, which closes the pipe: then it ends with all that it started.
_RUN_PIP = """
import os, runpy, signal, sys, threading
def watch(pipe):
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, args=(int(sys.argv.pop(1)),), daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_INSTALL = (
    *("install", "--no-deps", "--no-user", "--no-input", "--no-color", "--progress-bar", "off"),
    *("--disable-pip-version-check", "--no-warn-script-location"),
)
# What a user has set for pip holds, but for what would install elsewhere than in the folder (and a
# rule against that); the last two are meant for the interpreter of the caller.
_FOREIGN = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PYTHONHOME", "PYTHONPATH"}
_SETTINGS = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}

_STEPS = ("Collecting ", "Downloading ", "Building wheel for ", "Installing ")
_RAISED = re.compile(r"\s*[A-Za-z_][\w.]*(?:Error|Exception): ")
_SAYS_NOTHING = ("No matching distribution found", "ResolutionImpossible", "Exception:")


def normalised_name(name: str) -> str:
    """Return a distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def counted(pins: Sequence[str]) -> str:
    """Return how many locked packages there are, in words."""
    return f"{len(pins)} locked package{'' if len(pins) == 1 else 's'}"


def install_pins(
    pins: Sequence[str],
    target: Path,
    scratch: Path,
    python: Path,
    label: str,
    *,
    say: Callable[[str], None],
    keep: int,
) -> None:
    """Install exactly these packages, and nothing that they depend on, into a folder.

    Args:
        pins: ``name==version``, with normalised names; at least one.
        target: an empty folder.
        scratch: an empty folder for pip's own files; on the same disk, moving is renaming.
        python: the interpreter that will import them.
        label: what to call the package that has the lock in messages.
        say: is called with the lines that pip prints of its steps; the others are logged.
        keep: a file descriptor that pip keeps open until it is gone: of a lock, for instance.

    Raises:
        MissingDependencyError: there is no pip, or it did not install one of them.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _FOREIGN}
    environment |= {**_SETTINGS, "TMPDIR": str(scratch)}
    command = _find_pip(python, environment, label)
    arguments = [*command[1:], *_INSTALL, "--target", str(target), *pins]
    status, lines = _run_pip(command[0], arguments, environment, keep, say)
    if status:
        raise _failure(label, pins, status, lines)
    found = metadata.distributions(path=[str(target)])
    installed = {normalised_name(distribution.metadata["Name"] or "") for distribution in found}
    for pin in pins:
        if pin.split("==")[0] not in installed:
            raise MissingDependencyError(
                f"{label}: its locked requirement {pin} is not there after pip has run",
                hint="pip's settings may keep it from installing: pip config list",
            )


def _find_pip(python: Path, environment: Mapping[str, str], label: str) -> list[str]:
    """Return how to run pip for an interpreter: its own, or else the caller's (pip >= 22.3)."""
    for command in ([str(python)], [sys.executable, "--python", str(python)]):
        if not command[0]:  # a program that embeds Python may have no interpreter
            continue
        done = subprocess.run(
            [command[0], "-I", "-m", "pip", *command[1:], "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(environment),
            check=False,
        )
        if done.returncode == 0:
            return command
    raise MissingDependencyError(
        f"{label}: its locked requirements cannot be installed: {python} has no pip, and"
        f" {sys.executable or 'the caller'} has none that serves it",
        hint=f"{python} -m ensurepip, or install pip 22.3 or later beside Ingot",
    )


def _run_pip(
    interpreter: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    keep: int,
    say: Callable[[str], None],
) -> tuple[int, list[str]]:
    """Run pip in a process group of its own.

    Returns:
        its status and the lines it printed.
    """
    logger = logging.getLogger("ingot")
    watched, held = os.pipe()
    try:
        process = subprocess.Popen(
            [interpreter, "-I", "-c", _RUN_PIP, str(watched), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=(watched, keep),
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        lines = []
        with process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.strip():
                        lines.append(line.rstrip())
                        tell = say if line.lstrip().startswith(_STEPS) else logger.debug
                        tell(line.strip())
            except BaseException:
                with suppress(ProcessLookupError, PermissionError):  # it has just ended
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return process.returncode, lines
    finally:
        os.close(watched)
        os.close(held)


def _failure(
    label: str, pins: Sequence[str], status: int, lines: Sequence[str]
) -> MissingDependencyError:
    """Return the error for a pip that failed, with the one of its lines that tells why."""
    said = [line for line in lines if line.startswith(("ERROR: ", "error: "))]
    said = [line[len("error: ") :].strip() for line in said]
    said = [line for line in said if not line.startswith(_SAYS_NOTHING)]
    raised = [line.strip() for line in lines if _RAISED.match(line)]  # by a build, or by pip itself
    built = [line.strip() for line, end in pairwise(lines) if end.strip() == "[end of output]"]
    found = [f"pip ended with status {status}", *lines[-1:], *said[-1:], *raised[-1:], *built[-1:]]
    reason = found[-1]
    culprit = _culprit(pins, lines)
    what = f"its locked requirement {culprit}" if culprit else f"its {counted(pins)}"
    if any(line.startswith("WARNING: Retrying") for line in lines):
        hint = "a package index did not answer: PIP_INDEX_URL, PIP_PROXY, pip config list"
    elif built:
        hint = "no wheel fits this interpreter, so pip built it from source; -v shows its output"
    elif "[Errno " in reason:
        hint = "INGOT_HOME=DIR puts it elsewhere"
    else:
        hint = (
            "pip looks where its settings say: PIP_INDEX_URL, PIP_FIND_LINKS, pip config list;"
            " -v shows its output"
        )
    return MissingDependencyError(f"{label}: {what} cannot be installed: {reason}", hint=hint)


def _culprit(pins: Sequence[str], lines: Sequence[str]) -> str | None:
    """Return the pin that pip failed on: one that the last of the telling lines names."""
    telling = ["error", "failed", "╰─>"]
    if not any(line.startswith("Installing collected") for line in lines):
        telling += ["collecting", "processing"]  # which it does one by one
    for line in reversed(lines):
        # What a build has printed is set in: a module that it misses is not what failed.
        if line.startswith("   ") or not any(word in line.lower() for word in telling):
            continue
        for pin in pins:
            name, version = (re.escape(normalised_name(part)) for part in pin.split("=="))
            named = rf"(?<![\w-]){name}(?:-{version}(?!\w)|(?![\w-]))"
            if re.search(named, normalised_name(line)):
                return pin
    return None
