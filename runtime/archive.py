"""The package on disk: :class:`PackageWriter` makes one, :func:`open_package` reads one.

A package is a directory, or a zip under any file name; see ``archive_writer`` for how it is
written, and ``archive_reader`` for what is refused in one that somebody else wrote.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import IngotError, PackageError
from .archive_reader import DirectoryContainer, ZipContainer
from .archive_writer import MANIFEST, MANIFEST_VERSION, BlockCopier, PackageWriter

__all__ = ["HashProblem", "PackageReader", "PackageWriter", "open_package"]

READ_LIMIT = 64 << 20
"""``read_bytes`` refuses larger files unless told otherwise, in bytes."""


@dataclass(frozen=True, slots=True)
class HashProblem:
    """One disagreement between a package and its manifest.

    Attributes:
        name: the file.
        kind: the content differs, the file is missing, or the manifest does not list it.
        expected: the hash in the manifest; None for an unlisted file.
        found: the hash of the content; None for a missing file, and for an unlisted one, which
            is not read.
    """

    name: str
    kind: Literal["differs", "missing", "unlisted"]
    expected: str | None
    found: str | None

    def describe(self) -> str:
        """Return ``'0/data/x': found SHA-256 12ab; expected 34cd``, for messages and tables."""
        if self.kind == "missing":
            return f"{self.name!r}: found no such file; expected SHA-256 {self.expected}"
        if self.kind == "unlisted":
            return f"{self.name!r}: found a file that is not in {MANIFEST}"
        return f"{self.name!r}: found SHA-256 {self.found}; expected {self.expected}"


def open_package(path: Path) -> PackageReader:
    """Open a package, a directory or a zip, and check that it is safe to read.

    Raises:
        PackageError: there is nothing readable there, or it is no package, is damaged, or holds
            what may harm: paths that lead out of it, links, duplicates, encrypted or overlapping
            entries, far more content than its size allows.
    """
    return PackageReader(path)


class PackageReader:
    """A package that is open for reading; a context manager.

    Attributes:
        path: where it is.
        is_directory: whether it is a directory; else it is a zip.
        names: all files, sorted.
        total_size: bytes of all files, unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._container: ZipContainer | DirectoryContainer
        try:
            kind = stat.S_IFMT(os.stat(path).st_mode)
            if kind == stat.S_IFDIR:
                self._container = DirectoryContainer(self.path)
            elif kind == stat.S_IFREG:
                self._container = ZipContainer(self.path)
            else:
                raise PackageError(f"{path}: found a special file; expected a package")
        except FileNotFoundError:
            raise PackageError(f"{path}: found nothing there; expected a package") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise PackageError(f"{path}: cannot open this package: {reason}") from error
        self.is_directory = kind == stat.S_IFDIR
        self._entries = self._container.entries
        self.names: tuple[str, ...] = tuple(sorted(self._entries))
        self.total_size = sum(entry.size for entry in self._entries.values())

    def __enter__(self) -> PackageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive; streams that are still open fail from now on."""
        self._container.close()

    def has(self, name: str) -> bool:
        """Whether the package holds a file of this name."""
        return name in self._entries

    def size(self, name: str) -> int:
        """Return the unpacked size of a file in bytes.

        Raises:
            PackageError: there is no such file.
        """
        self._require(name)
        return self._entries[name].size

    def compressed_size(self, name: str) -> int:
        """Return the bytes that a file takes in the package.

        Raises:
            PackageError: there is no such file.
        """
        self._require(name)
        return self._entries[name].compressed_size

    def open(self, name: str) -> io.BufferedReader:
        """Return the content of a file as a binary stream.

        Raises:
            PackageError: there is no such file; while reading, its size or CRC is wrong.
        """
        return io.BufferedReader(self._stream(name))

    def read_bytes(self, name: str, limit: int = READ_LIMIT, *, verify: bool = False) -> bytes:
        """Return the content of a file.

        Args:
            name: the file.
            limit: the size, in bytes, from which on the file is refused.
            verify: compare with the manifest, when there is one.

        Raises:
            PackageError: the file is missing, larger than ``limit``, damaged, or (with
                ``verify``) differs from the manifest.
        """
        if self.size(name) > limit:
            raise PackageError(
                f"{self.path}: {name!r}: found {self.size(name)} bytes; expected at most {limit}"
            )
        content = io.BytesIO()
        with self._stream(name) as source, BlockCopier() as copier:
            _, found = copier.copy(source, content.write, f"{self.path}: {name!r}")
        if verify and name != MANIFEST and self.manifest is not None:
            self._compare(name, found)
        return content.getvalue()

    @functools.cached_property
    def manifest(self) -> dict[str, str] | None:
        """SHA-256 in hex by file name, or None when the package has no manifest.

        Raises:
            PackageError: the manifest is malformed.
        """
        if not self.has(MANIFEST):
            return None
        where = f"{self.path}: {MANIFEST}"
        try:
            document = json.loads(self.read_bytes(MANIFEST), object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise PackageError(f"{where}: found invalid JSON ({error})") from error
        if not isinstance(document, dict):
            raise PackageError(f"{where}: found {type(document).__name__}; expected an object")
        version, files = document.get("manifest_version"), document.get("files")
        if type(version) is not int or version != MANIFEST_VERSION:
            raise PackageError(
                f"{where}: manifest_version: found {version!r:.60}; expected {MANIFEST_VERSION}"
            )
        if not isinstance(files, dict):
            found = type(files).__name__
            raise PackageError(f"{where}: files: found {found}; expected an object of hashes")
        for name, value in files.items():
            if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{64}", value):
                raise PackageError(
                    f"{where}: files[{name!r:.80}]: found {value!r:.80}; expected 64 hex digits"
                )
        return {name: value.lower() for name, value in files.items()}

    def check_hashes(self, progress: Callable[[int, int], None] | None = None) -> list[HashProblem]:
        """Compare every file with the manifest; a package without one has no problems.

        Args:
            progress: gets the bytes hashed so far and in all.

        Raises:
            PackageError: a file cannot be unpacked.
        """
        return list(self._hash_problems("", progress))

    def verify_hashes(self) -> None:
        """Compare every file with the manifest, when there is one.

        Raises:
            PackageError: naming the first file that differs, is missing or is not listed.
        """
        for problem in self._hash_problems("", None):
            raise PackageError(f"{self.path}: {problem.describe()}")

    def extract(self, destination: Path, prefix: str = "", verify: bool = True) -> None:
        """Write the files under ``prefix`` to ``destination``, with their paths in the package.

        Folders are made with mode 0700 and files with 0600; nothing existing is overwritten, and
        no link below ``destination`` is followed. After an error, what was complete stays.

        Args:
            destination: a directory; it is made when its parent exists.
            prefix: a file or folder of the package (``0/code``); "" is all.
            verify: compare with the manifest on the way, when there is one.

        Raises:
            PackageError: a file is damaged, differs from the manifest, is missing or not listed.
            IngotError: the destination cannot be written.
        """
        destination = Path(destination)
        check = verify and self.manifest is not None
        listed = self.manifest or {}
        names = [
            name
            for name in self.names
            if _is_under(name, prefix) and (name in listed or not self._is_byte_code(name))
        ]
        if check:
            for problem in self._listing_problems(prefix):
                raise PackageError(f"{self.path}: {problem.describe()}")
        made: set[str] = set()
        try:
            if not destination.is_dir():
                os.mkdir(destination, 0o700)
            for folder in sorted(self._container.folders):
                if _is_under(folder, prefix):
                    _make_folders(destination, folder, made)
            with BlockCopier() as copier:
                for name in names:
                    _make_folders(destination, name.rpartition("/")[0], made)
                    self._extract_file(name, destination / name, copier, check)
        except OSError as error:
            reason = error.strerror or error
            raise IngotError(f"{error.filename or destination}: cannot write: {reason}") from error

    def _extract_file(self, name: str, place: Path, copier: BlockCopier, check: bool) -> None:
        compared = check and name != MANIFEST
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with self._stream(name, check_crc=not compared) as source:
            handle = os.open(place, flags, 0o600)
            try:
                with open(handle, "wb") as file:
                    _, found = copier.copy(source, file.write, f"{self.path}: {name!r}")
                if compared:
                    self._compare(name, found)
            except BaseException:
                place.unlink()
                raise

    def _require(self, name: str) -> None:
        if name not in self._entries:
            raise PackageError(f"{self.path}: found no file {name!r} in this package")

    def _stream(self, name: str, check_crc: bool = True) -> io.RawIOBase:
        self._require(name)
        try:
            return self._container.stream(name, check_crc)
        except OSError as error:
            raise PackageError(
                f"{self.path}: {name!r}: cannot read: {error.strerror or error}"
            ) from error

    def _compare(self, name: str, found: str) -> None:
        expected = (self.manifest or {}).get(name)
        if expected is None:
            problem = HashProblem(name, "unlisted", None, None)
        elif found == expected:
            return
        else:
            problem = HashProblem(name, "differs", expected, found)
        raise PackageError(f"{self.path}: {problem.describe()}")

    def _listing_problems(self, prefix: str) -> Iterator[HashProblem]:
        listed = self.manifest or {}
        for name in sorted(listed.keys() | self._entries.keys()):
            if not _is_under(name, prefix):
                continue
            if name not in self._entries:
                yield HashProblem(name, "missing", listed[name], None)
            elif name not in listed and name != MANIFEST and not self._is_byte_code(name):
                yield HashProblem(name, "unlisted", None, None)

    def _is_byte_code(self, name: str) -> bool:
        """Whether a file is Python's own cache, left in a directory by whoever ran its code.

        Ingot never reads byte code, so it needs no hash.
        """
        parts = name.split("/")
        cached = parts[:2] == ["0", "code"] and "__pycache__" in parts and name.endswith(".pyc")
        return self.is_directory and cached

    def _hash_problems(
        self, prefix: str, progress: Callable[[int, int], None] | None
    ) -> Iterator[HashProblem]:
        if self.manifest is None:
            return
        yield from self._listing_problems(prefix)
        listed = sorted(self.manifest.keys() & self._entries.keys())
        total = sum(self._entries[name].size for name in listed)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(done, total)

        with BlockCopier() as copier:
            for name in listed:
                with self._stream(name, check_crc=False) as source:
                    _, found = copier.copy(source, None, f"{self.path}: {name!r}", advance)
                if found != self.manifest[name]:
                    yield HashProblem(name, "differs", self.manifest[name], found)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return document


def _is_under(name: str, prefix: str) -> bool:
    prefix = prefix.rstrip("/")
    return not prefix or name == prefix or name.startswith(prefix + "/")


def _make_folder(path: Path) -> None:
    """Make one folder of mode 0700; an existing one is kept, a link is not taken for one."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        return
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "found a link or a file; expected a folder", str(path))


def _make_folders(destination: Path, folder: str, made: set[str]) -> None:
    """Make ``folder``, a path inside the package, below ``destination``."""
    place = destination
    for part in folder.split("/") if folder and folder not in made else ():
        place = place / part
        _make_folder(place)
    made.add(folder)
