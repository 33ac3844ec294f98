"""What a package is made of on disk: names, zip entries and plain files, none of them trusted.

:class:`ZipContainer` reads the central directory itself instead of through ``zipfile``: that module
cuts names at a NUL, follows a second name in an extra field, accepts data around the archive and
truncates an entry that inflates to more than it declares. Here each of those is an error.
Layout of the records: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.4.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import stat
import struct
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PackageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_SIZE = 1 << 20
"""Files are copied and hashed in blocks of this many bytes."""

MAX_ENTRIES = 100_000
MAX_DIRECTORY_BYTES = 32 << 20
MAX_NAME_BYTES = 4096
BOMB_RATIO = 200
BOMB_FLOOR = 1 << 30
"""An archive that declares more bytes than this, and ``BOMB_RATIO`` times its size, is refused."""

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_INFLATE_INPUT = 64 << 10
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_PATCH_DATA = 0x0020
_UTF8 = 0x0800
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a package; ``method``, ``crc`` and ``offset`` (of its data) serve a zip."""

    name: str
    size: int
    compressed_size: int
    method: int = STORED
    crc: int = 0
    offset: int = 0


def name_fault(name: str) -> str | None:
    """Say what makes ``name`` unfit as a file name inside a package, or None when it is fit.

    A fit name is relative, separated by '/', and means the same place on every operating system.
    """
    if not name:
        return "an empty name"
    if "\0" in name:
        return "a NUL character in the name"
    if "\\" in name:
        return "a backslash in the name"
    if name.startswith("/"):
        return "an absolute path"
    if re.match("[A-Za-z]:", name):
        return "a drive letter"
    parts = name.split("/")
    if ".." in parts:
        return "a '..' in the path"
    if "." in parts or "" in parts:
        return "an empty or '.' part in the path"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "a name that is not valid Unicode"
    return None if length <= MAX_NAME_BYTES else f"a name of {length} bytes"


def file_that_is_folder(files: Iterable[str]) -> tuple[str, str] | None:
    """Return a file and another name that lies below it, or None when there is no such pair."""
    # With NUL as the separator, what lies below a name sorts directly after it.
    ordered = sorted(name.replace("/", "\0") for name in files)
    for name, following in itertools.pairwise(ordered):
        if following.startswith(name + "\0"):
            return name.replace("\0", "/"), following.replace("\0", "/")
    return None


class EntryStream(io.RawIOBase):
    """The content of one zip entry; never yields more bytes than the entry declares.

    Args:
        container: the zip.
        entry: which file of it.
        check_crc: whether the CRC is compared at the end; callers that compare a SHA-256 need not.

    Raises:
        PackageError: while reading, when size, CRC or the compressed data is wrong.
    """

    def __init__(self, container: ZipContainer, entry: Entry, check_crc: bool = True) -> None:
        super().__init__()
        self._container = container
        self._entry = entry
        self._check_crc = check_crc
        self._crc = 0
        self._left = entry.size
        self._position = entry.offset
        self._end = entry.offset + entry.compressed_size
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == DEFLATED else None
        self._finished = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if self._finished or not len(view):
            return 0
        count = self._read_stored(view) if self._inflater is None else self._inflate(view)
        if self._check_crc:
            self._crc = zlib.crc32(view[:count], self._crc)
        self._left -= count
        if self._left == 0:
            self._finish()
        return count

    def _read_stored(self, view: memoryview) -> int:
        count = min(len(view), self._left)
        self._container.read_at(self._position, view[:count])
        self._position += count
        return count

    def _inflate(self, view: memoryview) -> int:
        if self._left == 0:
            return 0
        data = self._inflate_some(min(len(view), self._left))
        view[: len(data)] = data
        return len(data)

    def _inflate_some(self, limit: int) -> bytes:
        """Return 1 to ``limit`` inflated bytes; none at the end of the compressed data."""
        assert self._inflater is not None
        while not self._inflater.eof:
            pending = self._inflater.unconsumed_tail
            if not pending and self._position < self._end:
                chunk = bytearray(min(_INFLATE_INPUT, self._end - self._position))
                self._container.read_at(self._position, memoryview(chunk))
                self._position += len(chunk)
                pending = bytes(chunk)
            try:
                data = self._inflater.decompress(pending, limit)
            except zlib.error as error:
                raise self._fault(f"the compressed data is damaged ({error})") from error
            if data:
                return data
            if not pending:
                break
        if self._left:
            found = self._entry.size - self._left
            raise self._fault(
                f"it inflates to {found} bytes; its header declares {self._entry.size}"
            )
        return b""

    def _finish(self) -> None:
        self._finished = True
        if self._inflater is not None:
            if self._inflate_some(1):
                raise self._fault(f"it inflates to more than the {self._entry.size} bytes declared")
            if not self._inflater.eof:
                raise self._fault("the compressed data ends too early")
            if self._inflater.unused_data or self._position < self._end:
                raise self._fault("found more data after the end of the compressed data")
        if self._check_crc and self._crc != self._entry.crc:
            raise self._fault(f"found CRC {self._crc:08x}; expected {self._entry.crc:08x}")

    def _fault(self, reason: str) -> PackageError:
        return PackageError(f"{self._container.path}: entry {self._entry.name!r}: {reason}")


class ZipContainer:
    """The entries of a zip, checked at construction.

    Attributes:
        path: the archive.
        entries: its files by name.
        folders: the folders that have an entry of their own, without the final '/'.

    Raises:
        PackageError: it is no zip, is truncated or is unsafe to read.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.folders: set[str] = set()
        self._lock = threading.Lock()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._read_directory()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def stream(self, name: str, check_crc: bool = True) -> EntryStream:
        return EntryStream(self, self.entries[name], check_crc)

    def read_at(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset`` of the archive."""
        with self._lock:
            self._file.seek(offset)
            done = 0
            while done < len(view):
                count = self._file.readinto(view[done:])
                if not count:
                    raise self._fault(
                        f"truncated: it ends at byte {offset + done}, "
                        f"but {len(view) - done} more bytes are expected there"
                    )
                done += count

    def _fault(self, reason: str, name: str | None = None) -> PackageError:
        where = f"{self.path}: " if name is None else f"{self.path}: entry {name!r}: "
        return PackageError(where + reason)

    def _bytes_at(self, offset: int, size: int) -> bytes:
        data = bytearray(size)
        self.read_at(offset, memoryview(data))
        return bytes(data)

    def _read_directory(self) -> None:
        start, size, count = self._find_directory()
        if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
            raise self._fault(
                f"found {count} entries in a directory of {size} bytes; "
                f"expected at most {MAX_ENTRIES} in {MAX_DIRECTORY_BYTES}"
            )
        directory = self._bytes_at(start, size)
        spans: list[tuple[int, int, str]] = []
        position = 0
        for _ in range(count):
            position = self._read_record(directory, position, spans)
        if position != size:
            raise self._fault(f"the directory takes {position} bytes; its end record says {size}")
        self._check_whole(spans, start)

    def _find_directory(self) -> tuple[int, int, int]:
        """Return offset, size and number of records of the central directory."""
        tail_size = min(self._size, _END.size + _FULL16)
        tail = self._bytes_at(self._size - tail_size, tail_size)
        at = tail.rfind(b"PK\5\6")
        while at >= 0:
            if at + _END.size <= tail_size:
                fields = _END.unpack_from(tail, at)
                if at + _END.size + fields[-1] == tail_size:
                    break
            at = tail.rfind(b"PK\5\6", 0, at)
        if at < 0:
            head = self._bytes_at(0, min(4, self._size))
            if head == b"PK\3\4":
                raise self._fault("truncated: it starts as a zip, but has no end record")
            raise self._fault(f"found no zip archive (it starts with {head!r}); expected a package")
        _, disk, start_disk, here, count, size, start, _ = fields
        end = self._size - tail_size + at
        locator_at = end - _END64_LOCATOR.size
        if locator_at >= 0:
            locator = _END64_LOCATOR.unpack(self._bytes_at(locator_at, _END64_LOCATOR.size))
            if locator[0] == b"PK\6\7":
                end = locator[2]
                if end + _END64.size > locator_at:
                    raise self._fault("the zip64 end record is not where its locator says")
                record = _END64.unpack(self._bytes_at(end, _END64.size))
                signature, length, _, _, disk, start_disk, here, count, size, start = record
                if signature != b"PK\6\6" or end + 12 + length != locator_at:
                    raise self._fault("the zip64 end record is damaged")
        if disk or start_disk or here != count:
            raise self._fault("found a part of a multi-volume zip; expected a single file")
        if start + size != end:
            raise self._fault(
                f"damaged or truncated: its directory should end at byte {start + size}, "
                f"but its end record is at byte {end}"
            )
        return start, size, count

    def _read_record(
        self, directory: bytes, position: int, spans: list[tuple[int, int, str]]
    ) -> int:
        """Check the directory record at ``position``, remember it, return where the next one is."""
        try:
            record = _CENTRAL.unpack_from(directory, position)
        except struct.error:
            raise self._fault("damaged: its directory ends inside a record") from None
        flags, method, crc, packed, size = record[3], record[4], *record[7:10]
        name_size, extra_size, comment_size, disk = record[10:14]
        attributes, header = record[15], record[16]
        name_at = position + _CENTRAL.size
        extra_at = name_at + name_size
        following: int = extra_at + extra_size + comment_size
        if record[0] != b"PK\1\2" or following > len(directory):
            raise self._fault(f"damaged: found no directory record at its byte {position}")
        raw_name = directory[name_at:extra_at]
        try:
            name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437")
        except UnicodeDecodeError:
            raise self._fault(f"entry {raw_name!r}: its name is not valid UTF-8") from None
        packed, size, header = self._widen(
            name, directory[extra_at : extra_at + extra_size], size, packed, header
        )

        plain = name.removesuffix("/")
        fault = name_fault(plain)
        if fault:
            raise self._fault(f"found {fault}; expected a plain relative path", name)
        if plain in self.entries or plain in self.folders:
            raise self._fault("found two entries of this name; expected one", name)
        if flags & _ENCRYPTED:
            raise self._fault("found an encrypted entry; expected none", name)
        if method not in (STORED, DEFLATED) or flags & _PATCH_DATA:
            raise self._fault(f"found compression method {method}; expected 0 or 8", name)
        if disk:
            raise self._fault("found an entry on another volume; expected a single file", name)
        is_folder = plain != name
        kind, expected = stat.S_IFMT(attributes >> 16), stat.S_IFDIR if is_folder else stat.S_IFREG
        if kind not in (0, expected):
            raise self._fault(
                f"found a {_kind_name(kind)}; expected a {_kind_name(expected)}", name
            )
        if is_folder and size:
            raise self._fault(f"found a folder of {size} bytes; expected 0", name)
        if method == STORED and packed != size:
            raise self._fault(f"found {packed} stored bytes; its header declares {size}", name)

        data = self._find_data(name, raw_name, method, header)
        spans.append((header, data + packed, name))
        if is_folder:
            self.folders.add(plain)
        else:
            self.entries[name] = Entry(name, size, packed, method, crc, data)
        return following

    def _widen(
        self, name: str, extra: bytes, size: int, packed: int, header: int
    ) -> tuple[int, int, int]:
        """Take the values that do not fit in 32 bits from the zip64 field."""
        values = [size, packed, header]
        if _FULL32 in values:
            wide = b""
            at = 0
            while at + 4 <= len(extra):
                tag, length = struct.unpack_from("<2H", extra, at)
                if tag == 1:
                    wide = extra[at + 4 : at + 4 + length]
                    break
                at += 4 + length
            if len(wide) < 8 * values.count(_FULL32):
                raise self._fault("its zip64 field is missing or too short", name)
            numbers = iter(struct.unpack_from(f"<{len(wide) // 8}Q", wide))
            values = [next(numbers) if value == _FULL32 else value for value in values]
        return values[1], values[0], values[2]

    def _find_data(self, name: str, raw_name: bytes, method: int, header: int) -> int:
        """Return where the data of an entry starts, having compared its local header."""
        if header + _LOCAL.size + len(raw_name) > self._size:
            raise self._fault(f"found its header at byte {header}, beyond the end", name)
        data = self._bytes_at(header, _LOCAL.size + len(raw_name))
        local = _LOCAL.unpack_from(data)
        name_size: int = local[9]
        extra_size: int = local[10]
        same_name = name_size == len(raw_name) and data[_LOCAL.size :] == raw_name
        if local[0] != b"PK\3\4" or not same_name or local[3] != method or local[2] & _ENCRYPTED:
            raise self._fault("its local header differs from its directory record", name)
        return header + _LOCAL.size + name_size + extra_size

    def _check_whole(self, spans: list[tuple[int, int, str]], directory_start: int) -> None:
        """Check what only all entries together show: overlaps, bombs, a file that is a folder."""
        previous_end, previous = 0, ""
        for start, end, name in sorted(spans):
            if start < previous_end:
                raise self._fault(f"it overlaps the entry {previous!r}; expected none to", name)
            previous_end, previous = end, name
        if previous_end > directory_start:
            raise self._fault("it is longer than the archive has room for", previous)
        total = sum(entry.size for entry in self.entries.values())
        if total > BOMB_FLOOR and total > BOMB_RATIO * self._size:
            raise self._fault(
                f"found {self._size} bytes that declare to unpack to {total}; "
                f"expected at most {BOMB_RATIO} times as many"
            )
        pair = file_that_is_folder([*self.entries, *(f"{name}/" for name in self.folders)])
        if pair:
            raise self._fault(f"is a file, and the folder of {pair[1]!r}; expected one", pair[0])


class DirectoryContainer:
    """The files below a directory, listed and checked at construction.

    Attributes, as those of :class:`ZipContainer`: path, entries, folders (the empty ones too).

    Raises:
        PackageError: a link, a special file or an unfit name is in it, or too many files are.
        OSError: it cannot be listed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.folders: set[str] = set()
        pending = [""]
        while pending:
            prefix = pending.pop()
            with os.scandir(path / prefix) as found:
                for item in found:
                    name = prefix + item.name
                    if self._add(name, item.stat(follow_symlinks=False)):
                        pending.append(name + "/")

    def _add(self, name: str, status: os.stat_result) -> bool:
        """Remember one item; return whether it is a folder."""
        where = f"{self.path}: {name!r}"
        fault = name_fault(name)
        if fault:
            raise PackageError(f"{where}: found {fault}; expected a plain relative path")
        if len(self.entries) + len(self.folders) >= MAX_ENTRIES:
            raise PackageError(f"{self.path}: found more than {MAX_ENTRIES} files")
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            self.folders.add(name)
            return True
        if kind != stat.S_IFREG:
            raise PackageError(f"{where}: found a {_kind_name(kind)}; expected a regular file")
        self.entries[name] = Entry(name, status.st_size, status.st_size)
        return False

    def close(self) -> None:
        """Do nothing: no file is held open."""

    def stream(self, name: str, check_crc: bool = True) -> io.FileIO:
        """Open a file without following a link that took its place since the listing."""
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        handle = os.open(self.path / name, flags)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise PackageError(f"{self.path}: {name!r}: expected a regular file")
        return io.FileIO(handle, "rb")


def _kind_name(kind: int) -> str:
    names = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "folder", stat.S_IFREG: "regular file"}
    return names.get(kind, "special file (device, pipe or socket)")
