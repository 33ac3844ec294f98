"""Writes a package, a zip or a directory: streamed, hashed on the way, always the same bytes."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..errors import IngotError, ModelError, OutputExistsError, UsageError
from .archive_reader import BLOCK_SIZE, name_fault

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1

_MTIME = (2000, 1, 1, 0, 0, 0)
_UNIX = 3
_PARALLEL_FROM = 128 << 10
_BUFFERS = 4
_SYNC_SECONDS = 0.1

Source = io.RawIOBase | io.BufferedIOBase
Write = Callable[[memoryview], object]


class BlockCopier:
    """Copies and hashes streams through a few reused buffers, hashing in a thread beside the rest.

    ``hashlib`` and ``zlib`` release the interpreter's lock on blocks of this size, so SHA-256
    runs beside reading, CRC, compression and write: the slower of the two sets the pace.
    """

    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(BLOCK_SIZE)) for _ in range(_BUFFERS)]
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ingot-hash")

    def __enter__(self) -> BlockCopier:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def copy(
        self,
        source: Source,
        write: Write | None,
        label: str,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[int, str]:
        """Read ``source`` to its end and return its size in bytes and its SHA-256 in hex.

        Args:
            source: an open binary stream.
            write: gets every block; it must be done with it when it returns. None only hashes.
            label: what is read, for the error message.
            progress: gets the size of every block.

        Raises:
            ModelError: the source cannot be read. What ``write`` raises passes through.
        """
        digest = hashlib.sha256()
        hashing: collections.deque[Future[None]] = collections.deque()
        size = 0
        try:
            for buffer in itertools.cycle(self._buffers):
                if len(hashing) == len(self._buffers):
                    hashing.popleft().result()  # the last use of this buffer
                try:
                    count = source.readinto(buffer)
                except OSError as error:
                    raise ModelError(f"{label}: cannot read: {error.strerror or error}") from error
                if not count:
                    break
                block = buffer[:count]
                if count < _PARALLEL_FROM:
                    wait(hashing)
                    hashing.clear()
                    digest.update(block)
                else:
                    hashing.append(self._pool.submit(digest.update, block))
                if write is not None:
                    write(block)
                size += count
                if progress:
                    progress(count)
        finally:
            wait(hashing)
        return size, digest.hexdigest()


class PackageWriter:
    """Collects the files of a package, writes them beside the target, and renames the result.

    Use it as a context manager: what was not committed by its end is removed.

    Args:
        target: the package to make.
        as_directory: write a directory instead of a zip.
        store: compress nothing in the zip; by default only ``0/data/`` and ``.npz`` files are not.
        force: replace an existing output. A directory is replaced only when it is empty or a
            package itself.

    Raises:
        OutputExistsError: the target exists, and may not be replaced.
        UsageError: the folder of the target is missing.
        IngotError: the folder of the target cannot be written.
    """

    def __init__(
        self, target: Path, *, as_directory: bool = False, store: bool = False, force: bool = False
    ) -> None:
        self.target = Path(target)
        self._place = Path(os.path.abspath(target))
        self._as_directory = as_directory
        self._store = store
        self._force = force
        self._sources: dict[str, Path | bytes | None] = {}
        self._folders: set[str] = set()
        self._temporary: Path | None = None
        self._mode = 0
        self._check_target()

    def __enter__(self) -> PackageWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._discard()

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a file with this content.

        Raises:
            UsageError: the name is unfit, or taken.
        """
        self._add(name, bytes(data))

    def add_file(self, name: str, source: Path) -> None:
        """Add a file whose content is read from ``source`` when the package is written.

        Raises:
            UsageError: the name is unfit, or taken.
            ModelError: the source is no regular file.
        """
        if not Path(source).is_file():
            found = "something else" if os.path.lexists(source) else "nothing"
            raise ModelError(f"{source}: found {found} there; expected a file to package")
        self._add(name, Path(source))

    def add_tree(self, prefix: str, source_dir: Path) -> None:
        """Add all files and empty folders below a directory, under ``prefix`` ("" is the root).

        Raises:
            UsageError: a name is unfit or taken; a link or a special file is below the directory.
            ModelError: the directory cannot be read.
        """
        prefix = prefix.rstrip("/")
        try:
            children = sorted(os.scandir(source_dir), key=lambda child: child.name)
        except OSError as error:
            reason = error.strerror or error
            raise ModelError(f"{source_dir}: cannot read this folder: {reason}") from error
        if not children and prefix:
            self.add_directory(prefix)
        for child in children:
            name = f"{prefix}/{child.name}" if prefix else child.name
            if child.is_dir(follow_symlinks=False):
                self.add_tree(name, Path(child.path))
            elif child.is_file(follow_symlinks=False):
                self._add(name, Path(child.path))
            else:
                kind = "symbolic link" if child.is_symlink() else "special file"
                raise UsageError(f"{child.path}: found a {kind}; expected only files and folders")

    def add_directory(self, name: str) -> None:
        """Add an entry for a folder, which may stay empty (``0/ops/``).

        Raises:
            UsageError: the name is unfit, or taken.
        """
        self._add(name.removesuffix("/") + "/", None)

    def write(self) -> Path:
        """Write the whole package into a private temporary beside the target.

        Returns:
            the temporary zip or directory, to be tested before :meth:`commit`.

        Raises:
            ModelError: a source cannot be read, or changed meanwhile.
            IngotError: the output cannot be written (permissions, a full disk).
        """
        if self._temporary is not None:
            raise UsageError(f"{self.target}: this package is already written")
        names = sorted([*self._sources, MANIFEST])
        try:
            with BlockCopier() as copier:
                if self._as_directory:
                    return self._fill_directory(names, copier)
                return self._fill_zip(names, copier)
        except OSError as error:
            self._discard()
            raise self._os_fault(error) from error
        except BaseException:
            self._discard()
            raise

    def commit(self) -> Path:
        """Rename what :meth:`write` made onto the target, and return the target.

        Raises:
            OutputExistsError: the target came into being meanwhile.
            IngotError: the rename failed; an old output is back in its place.
        """
        temporary = self._temporary
        if temporary is None:
            raise UsageError(f"{self.target}: write() the package before commit()")
        try:
            self._check_target()
            os.chmod(temporary, self._mode)
            self._replace(temporary)
        except OSError as error:
            self._discard()
            raise self._os_fault(error) from error
        except BaseException:
            self._discard()
            raise
        self._temporary = None
        return self.target

    # The names and the target

    def _add(self, name: str, source: Path | bytes | None) -> None:
        plain = name.removesuffix("/") if source is None else name
        fault = name_fault(plain)
        if fault:
            raise UsageError(f"{name!r}: found {fault}; expected a plain path inside the package")
        if plain == MANIFEST:
            raise UsageError(f"{name!r} is written by Ingot itself; expected another name")
        if plain in self._sources or plain + "/" in self._sources:
            raise UsageError(f"{name!r}: the package already has an entry of this name")
        parts = plain.split("/")
        parents = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        if source is not None and plain in self._folders:
            raise UsageError(f"{name!r}: the package already has a folder of this name")
        for parent in parents:
            if parent == MANIFEST or self._sources.get(parent) is not None:
                raise UsageError(f"{name!r}: {parent!r} is a file of the package, not a folder")
        self._folders.update(parents)
        self._sources[name] = source

    def _check_target(self) -> None:
        if os.path.lexists(self._place):
            if not self._force:
                raise OutputExistsError(
                    f"{self.target}: already exists", hint="pass --force to replace it"
                )
            if _is_real_directory(self._place) and not _may_be_replaced(self._place):
                raise OutputExistsError(
                    f"{self.target}: is a folder that holds no package; it is not replaced",
                    hint="remove it yourself, or choose another output",
                )
        folder = self._place.parent
        if not folder.is_dir():
            raise UsageError(f"{self.target}: cannot write: there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise IngotError(f"{self.target}: cannot write: no permission in {folder}")

    def _os_fault(self, error: OSError) -> IngotError:
        return IngotError(f"{self.target}: cannot write: {error.strerror or error}")

    # Writing

    def _new_sibling(self, suffix: str) -> Path:
        """Return an unused hidden name beside the target, cut where a long one would not fit."""
        stem = os.fsencode(self._place.name)[:220].decode(errors="ignore")
        return self._place.with_name(f".{stem}.{secrets.token_hex(4)}{suffix}")

    def _fill_zip(self, names: list[str], copier: BlockCopier) -> Path:
        path = self._new_sibling(".tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags, 0o666)
        self._temporary = path
        self._mode = stat.S_IMODE(os.fstat(handle).st_mode)  # what the user's umask allows
        with open(handle, "w+b") as file:
            os.chmod(path, 0o600)
            # Closing the zip after a failed write fails again; the first error is the one to tell.
            with _synced(file), zipfile.ZipFile(file, "w") as archive:
                for name, source, size, finish in self._contents(names, copier):
                    info = self._zip_info(name, size)
                    with archive.open(info, "w") as entry:
                        finish(*copier.copy(source, entry.write, _label(name)))
        return path

    def _zip_info(self, name: str, size: int) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, _MTIME)
        info.create_system = _UNIX
        info.file_size = size  # decides on zip64
        stored = self._store or name.startswith("0/data/") or name.endswith((".npz", "/"))
        info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
        if name.endswith("/"):
            info.external_attr = (stat.S_IFDIR | 0o755) << 16 | 0x10
        else:
            info.external_attr = (stat.S_IFREG | 0o644) << 16
        return info

    def _fill_directory(self, names: list[str], copier: BlockCopier) -> Path:
        path = self._new_sibling(".tmp")
        os.mkdir(path)
        self._temporary = path
        self._mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(0o700)
        for name, source, _, finish in self._contents(names, copier):
            place = path / name
            if name.endswith("/"):
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "xb") as file, _synced(file):
                finish(*copier.copy(source, file.write, _label(name)))
        return path

    def _contents(
        self, names: list[str], copier: BlockCopier
    ) -> Iterator[tuple[str, Source, int, Callable[[int, str], None]]]:
        """Yield name, stream, size, and what to call with the copied size and hash, for each name.

        What sorts after the manifest is hashed beforehand, as the manifest lists it.
        """
        hashes: dict[str, str] = {}
        for name in names[names.index(MANIFEST) + 1 :]:
            if not name.endswith("/"):
                with self._open(name) as (source, _):
                    hashes[name] = copier.copy(source, None, _label(name))[1]
        for name in names:
            if name == MANIFEST:
                document = {"manifest_version": MANIFEST_VERSION, "files": hashes}
                text = json.dumps(document, indent=4, sort_keys=True) + "\n"
                yield name, io.BytesIO(text.encode()), len(text), lambda size, found: None
                continue
            with self._open(name) as (source, size):

                def finish(copied: int, found: str, name: str = name, size: int = size) -> None:
                    if copied != size or hashes.get(name, found) != found:
                        raise ModelError(
                            f"the source of {name!r} changed while it was packaged: "
                            f"found {copied} bytes, SHA-256 {found}"
                        )
                    if not name.endswith("/"):
                        hashes[name] = found

                yield name, source, size, finish

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[Source, int]]:
        content = self._sources[name]
        if not isinstance(content, Path):
            content = content or b""
            yield io.BytesIO(content), len(content)
            return
        try:
            file = open(content, "rb", buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:
            raise ModelError(f"{content}: cannot read: {error.strerror or error}") from error
        with file:
            yield file, os.fstat(file.fileno()).st_size

    # Putting it in place

    def _replace(self, temporary: Path) -> None:
        aside: Path | None = None
        if os.path.lexists(self._place) and (self._as_directory or _is_real_directory(self._place)):
            aside = self._new_sibling(".old")
        try:
            if aside is not None:
                os.rename(self._place, aside)
            os.replace(temporary, self._place)
        except BaseException:
            if aside is not None and os.path.lexists(aside) and not os.path.lexists(self._place):
                os.rename(aside, self._place)
            raise
        self._temporary = None
        _sync_folder(self._place.parent)
        if aside is not None:
            _remove(aside)

    def _discard(self) -> None:
        if self._temporary is not None:
            _remove(self._temporary)
            self._temporary = None


def _label(name: str) -> str:
    return f"the source of {name!r}"


def _is_real_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _may_be_replaced(directory: Path) -> bool:
    """Whether it is empty or a package, so that ``--force`` never removes anything else."""
    names = set(os.listdir(directory))
    if not names:
        return True
    if not {"config.json", "0"} <= names:
        return False
    try:
        listed = set(json.loads((directory / MANIFEST).read_bytes())["files"])
    except FileNotFoundError:  # an early Neuropod wrote it
        return names <= {"config.json", "0", "test_data.pkl"}
    except (OSError, ValueError, TypeError, KeyError):
        return False
    found = {
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()
    }
    return all(name in listed or name == MANIFEST or name.endswith(".pyc") for name in found)


def _remove(path: Path) -> None:
    if _is_real_directory(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _synced(file: BinaryIO) -> Iterator[None]:
    """Sync a file at the end; what is written earlier goes to disk meanwhile, not only then."""
    done = threading.Event()

    def push() -> None:
        while not done.wait(_SYNC_SECONDS):
            os.fsync(file.fileno())

    with ThreadPoolExecutor(1, thread_name_prefix="ingot-sync") as pool:
        pushing = pool.submit(push)
        try:
            yield
        finally:
            done.set()
        # The system tells an error of the disk only once, maybe to that thread.
        pushing.result()
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
