"""The error hierarchy: every failure a user can cause has a class, an exit code, perhaps a hint.

The command line prints ``message`` on one line, ``hint`` on the next, and exits with ``exit_code``.
"""

from __future__ import annotations

from pathlib import Path


class IngotError(Exception):
    """Root of all errors that Ingot raises on purpose.

    Args:
        message: one line that names the file, key or tensor, what was found and what was expected.
        hint: what to do about it, when that is not obvious.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(IngotError):
    """A command or a function was called in a way that cannot work (exit code 2)."""

    exit_code = 2


class SpecError(UsageError):
    """A spec file, or a spec given in Python, is invalid (exit code 2).

    Args:
        message: what was found and what was expected.
        file: the spec file, when there is one.
        line: 1-based line of the offending key, when known.
        key: dotted path of the key (``inputs[0].shape``), when known.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = "" if file is None else str(file) if line is None else f"{file}:{line}"
        parts = [part for part in (where, key, message) if part]
        super().__init__(": ".join(parts), hint=hint)
        self.file = file
        self.line = line
        self.key = key
        self.reason = message


class CheckError(IngotError, ValueError):
    """A check failed: golden data, a hash in ``verify``, parity (exit code 4).

    It is a ``ValueError`` too: Neuropod promised one when the output of a packaged model differs.
    """

    exit_code = 4


class ModelError(IngotError):
    """A model, package or input data cannot be read, is invalid or not trusted (exit code 5)."""

    exit_code = 5


class PackageError(ModelError):
    """A package is malformed, damaged or unsafe to open (exit code 5)."""


class UntrustedCodeError(ModelError):
    """The model carries code, and nobody said that it may run (exit code 5)."""


class InputError(ModelError, ValueError):
    """Tensors handed to a model, or returned by it, do not fit its spec (exit code 5)."""


class IsolationError(ModelError):
    """The worker process of an isolated model died, hung or did not start (exit code 5)."""


class MissingDependencyError(IngotError):
    """An optional dependency is not installed (exit code 6)."""

    exit_code = 6


class OutputExistsError(UsageError):
    """An output is already there and ``--force`` was not given (exit code 2)."""


class TrainingError(IngotError):
    """Training cannot go on: the loss or a weight is no finite number (exit code 1)."""


class TrainingInterrupted(IngotError):
    """Training was asked to stop, and wrote a checkpoint (exit code 130)."""

    exit_code = 130


class WorkerError(IngotError):
    """A worker of a distributed run failed.

    Args:
        message: why.
        hint: what to do about it.
        exit_code: of the worker; 1 when it was killed.
    """

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
