"""Folders into which packages are extracted; those of killed processes are removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "ingot-model-"
_OWNER = "owner"
_GRACE_SECONDS = 60


class ExtractionFolder:
    """A folder below ``TMPDIR`` for one extracted package.

    A lock on a file in it tells that its process lives. Folders without one, of processes that were
    killed, are removed when the next is made.

    Attributes:
        path: the folder for the package's files.
    """

    def __init__(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        self._root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self._root / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._owner = os.getpid()
        self.path = self._root / "package"
        self.path.mkdir()

    def remove(self) -> None:
        """Remove it; a second time, or in a fork of its process, nothing is done."""
        if self._lock >= 0 and self._owner == os.getpid():
            shutil.rmtree(self._root, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _remove_abandoned(parent: Path) -> None:
    for owner in parent.glob(f"{_PREFIX}*/{_OWNER}"):
        try:
            lock = os.open(owner, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # of another user, or gone meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            # A new one may be about to be locked.
            if os.path.getmtime(owner) < time.time() - _GRACE_SECONDS:
                shutil.rmtree(owner.parent, ignore_errors=True)
        finally:
            os.close(lock)
