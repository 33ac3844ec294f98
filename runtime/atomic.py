"""Files that appear complete, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Write a file beside its target; it is renamed into place when the context ends.

    Args:
        path: the target; it gets the permissions that the user's umask allows.
        sync: have its content on the disk before it takes the target's place, so that a crash of
            the machine leaves the old file or the new one.

    Yields:
        the empty file to write to, which may itself be replaced. It is removed when the context
        raises, and the target stays as it was.

    Raises:
        OSError: it cannot be written.
    """
    stem = os.fsencode(path.name)[:200].decode(errors="ignore")
    temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}.part")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = os.fstat(handle).st_mode
    os.close(handle)
    try:
        yield temporary
        if temporary.stat().st_mode != mode:  # a library that made the file anew, as its own only
            temporary.chmod(mode)
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
