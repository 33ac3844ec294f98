"""The package container: archives that are damaged, or made to harm, and what is safe in them."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import FILES, DirOrZip, contents, make_zip, refused, tree, write_package
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ingot.errors import IngotError, PackageError
from ingot.runtime import archive_reader
from ingot.runtime.archive import HashProblem, open_package

# Reading: hostile and damaged archives


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "nothing there")
    text = tmp_path / "text"
    text.write_bytes(b"hello")
    refused(text, "no zip archive")
    text.write_bytes(b"")
    refused(text, "no zip archive")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "special file")


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path / "p")
    whole = package.read_bytes()
    for size in (len(whole) - 1, len(whole) - 30, len(whole) // 2, 100):
        package.write_bytes(whole[:size])
        refused(package, "truncated")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("../evil", "'..'"),
        ("a/../../evil", "'..'"),
        ("/etc/evil", "absolute"),
        ("C:/evil", "drive letter"),
        ("C:evil", "drive letter"),
        ("a\\..\\evil", "backslash"),
        ("a//b", "empty or '.'"),
        ("./a", "empty or '.'"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, word: str) -> None:
    refused(make_zip(tmp_path / "p", (name, b"x")), f"entry {name!r}", word)


def test_a_name_with_nul_is_refused(tmp_path: Path) -> None:
    package = make_zip(tmp_path / "p", ("a_b", b"x"))
    package.write_bytes(package.read_bytes().replace(b"a_b", b"a\0b"))
    refused(package, "NUL")


@pytest.mark.parametrize("system", [0, 3])
@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_a_link_or_special_entry_is_refused(tmp_path: Path, mode: int, system: int) -> None:
    info = zipfile.ZipInfo("0/data/model.pt")
    info.create_system = system
    info.external_attr = (mode | 0o777) << 16
    refused(make_zip(tmp_path / "p", (info, b"/etc/passwd")), "'0/data/model.pt'", "regular file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "names", [("a", "a"), ("a", "a/"), ("a/", "a/"), ("a", "a/b"), ("a/b/c", "a"), ("a", "a/b/")]
)
def test_two_entries_of_one_name_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    entries = [(name, b"" if name.endswith("/") else b"x") for name in ("a!", *names)]
    refused(make_zip(tmp_path / "p", *entries), "expected one")


def patch_record(package: Path, field: str, value: int, *, local: bool = True) -> None:
    """Change a field of the last entry in its directory record and, unless told, its header."""
    # field: (offset in the central record, offset in the local header, format)
    offsets = {
        "flags": (8, 6, "<H"),
        "method": (10, 8, "<H"),
        "crc": (16, 14, "<I"),
        "packed": (20, 18, "<I"),
        "size": (24, 22, "<I"),
        "header": (42, None, "<I"),
    }
    central_at, local_at, layout = offsets[field]
    data = bytearray(package.read_bytes())
    record = data.rfind(b"PK\1\2")
    (header,) = struct.unpack_from("<I", data, record + 42)
    struct.pack_into(layout, data, record + central_at, value)
    if local and local_at is not None:
        struct.pack_into(layout, data, header + local_at, value)
    package.write_bytes(data)


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    package = make_zip(tmp_path / "p", ("a", b"x"))
    patch_record(package, "flags", 1)
    refused(package, "'a'", "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "p", "w", method) as archive:
        archive.writestr("a", b"x" * 100)
    refused(tmp_path / "p", f"compression method {method}")


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    package = make_zip(tmp_path / "p", ("aa", b"x" * 100), ("ab", b"y" * 100))
    whole = package.read_bytes()
    package.write_bytes(whole)
    patch_record(package, "header", 0)
    refused(package, "header differs")
    # One entry whose data is the header and the data of the next.
    inner = make_zip(tmp_path / "inner", ("b", b"y" * 100)).read_bytes()
    packed = inner.find(b"PK\1\2")
    package = make_zip(tmp_path / "q", ("a", inner[:packed]), ("b", b"y" * 100))
    start = package.read_bytes().find(inner[:packed])
    patch_record(package, "header", start)
    refused(package, "overlaps")


def test_an_entry_larger_than_the_archive_is_refused(tmp_path: Path) -> None:
    package = make_zip(tmp_path / "p", ("a", b"x" * 100))
    patch_record(package, "packed", 10_000)
    patch_record(package, "size", 10_000)
    refused(package, "longer than the archive")


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0/data/x", bytes(1 << 20))
    patch_record(tmp_path / "p", "size", (1 << 30) + 1)
    refused(tmp_path / "p", str((1 << 30) + 1), "200")


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_reader, "MAX_ENTRIES", 3)
    refused(make_zip(tmp_path / "p", *((name, b"") for name in "abcd")), "4 entries")
    write_package(tmp_path / "d", as_directory=True)
    refused(tmp_path / "d", "more than 3")


@pytest.mark.parametrize("declared", [10, 0, 999, 1001, 5000])
@pytest.mark.parametrize("fix_crc", [False, True])
def test_an_entry_of_another_size_than_declared_is_refused_while_reading(
    tmp_path: Path, declared: int, fix_crc: bool
) -> None:
    package, data = tmp_path / "p", b"x" * 1000
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", data)
    patch_record(package, "size", declared)
    if fix_crc:
        patch_record(package, "crc", zlib.crc32(data[:declared]))
    with open_package(package) as reader:
        with pytest.raises(PackageError, match=f"'a': it inflates to .*{declared}"):
            reader.read_bytes("a")
        with reader.open("a") as stream, pytest.raises(PackageError, match="inflates"):
            stream.read()
        with pytest.raises(PackageError, match="inflates"):
            reader.extract(tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_a_stored_entry_with_two_sizes_is_refused(tmp_path: Path) -> None:
    package = make_zip(tmp_path / "p", ("a", b"x" * 100))
    patch_record(package, "size", 50)
    refused(package, "100 stored bytes", "50")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_wrong_crc_is_refused_while_reading(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "p", "w", method) as archive:
        archive.writestr("a", b"x" * 1000)
    patch_record(tmp_path / "p", "crc", 1)
    with open_package(tmp_path / "p") as reader:
        with pytest.raises(PackageError, match=r"CRC .*; expected 00000001"):
            reader.read_bytes("a")
        with pytest.raises(PackageError, match="CRC"):
            reader.extract(tmp_path / "out")


def test_more_data_than_the_compressed_stream_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"x" * 1000)
    data = (tmp_path / "p").read_bytes()
    at = data.rfind(b"PK\1\2")
    (packed,) = struct.unpack_from("<I", data, at + 20)
    end = data.rfind(b"PK\5\6")
    moved = bytearray(data[:at] + b"junk" + data[at:])
    struct.pack_into("<I", moved, end + 4 + 16, at + 4)
    (tmp_path / "p").write_bytes(moved)
    patch_record(tmp_path / "p", "packed", packed + 4)
    with (
        open_package(tmp_path / "p") as reader,
        pytest.raises(PackageError, match="after the end"),
    ):
        reader.read_bytes("a")


def test_zip64_records_are_read(tmp_path: Path) -> None:
    package = tmp_path / "p"
    with zipfile.ZipFile(package, "w") as archive:
        with archive.open("a", "w", force_zip64=True) as entry:
            entry.write(b"hello")
        archive.writestr("b", b"you")
    data = package.read_bytes()
    at = data.rfind(b"PK\5\6")
    _, _, _, _, count, size, start, _ = struct.unpack_from("<4s4H2IH", data, at)
    wide = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    wide += struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
    package.write_bytes(data[:at] + wide + end)
    with open_package(package) as reader:
        assert contents(reader) == {"a": b"hello", "b": b"you"}


def test_archives_of_other_tools_are_read(tmp_path: Path) -> None:
    package = tmp_path / "p"
    with open(package, "wb") as file:

        class Pipe:  # cannot seek: sizes follow the data
            write, flush = file.write, file.flush

        with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
            archive.comment = b"made elsewhere"
            archive.writestr("0/data/é", b"x" * 50)
            archive.writestr("0/ops/", b"")
    with open_package(package) as reader:
        assert contents(reader) == {"0/data/é": b"x" * 50}
        assert reader.manifest is None
        assert reader.check_hashes() == []
        reader.extract(tmp_path / "out")
    assert (tmp_path / "out/0/ops").is_dir()


def test_a_directory_with_a_link_or_special_file_is_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", as_directory=True)
    (package / "0/data/link").symlink_to("/etc/passwd")
    refused(package, "'0/data/link'", "symbolic link")
    (package / "0/data/link").unlink()
    (package / "0/more").symlink_to(package / "0/data", target_is_directory=True)
    refused(package, "'0/more'", "symbolic link")
    (package / "0/more").unlink()
    os.mkfifo(package / "pipe")
    refused(package, "'pipe'", "special file")
    (package / "pipe").unlink()
    (package / "a\\b").touch()
    refused(package, "backslash")


def test_missing_and_large_files_are_refused(tmp_path: Path) -> None:
    with open_package(write_package(tmp_path / "p")) as reader:
        assert reader.has("config.json")
        assert not reader.has("absent")
        for access in (reader.read_bytes, reader.open, reader.size, reader.compressed_size):
            with pytest.raises(PackageError, match="'absent'"):
                access("absent")
        with pytest.raises(PackageError, match="expected at most 10"):
            reader.read_bytes("0/config.json", 10)


# The manifest


def altered(
    package: Path, change: Callable[[dict[str, bytes]], object], as_directory: bool
) -> Path:
    """Write the files of a package anew, after ``change``, with correct CRCs."""
    with open_package(package) as reader:
        files = {name: reader.read_bytes(name) for name in reader.names}
    change(files)
    other = package.with_name("altered")
    if as_directory:
        for name, data in files.items():
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_bytes(data)
        return other
    return make_zip(other, *files.items())


@DirOrZip
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("differs", lambda files: files.update({"config.json": b"[]"})),
        ("missing", lambda files: files.pop("config.json")),
        ("unlisted", lambda files: files.update({"0/extra": b"1"})),
    ],
)
def test_a_file_that_disagrees_with_the_manifest_is_found(
    tmp_path: Path, as_directory: bool, kind: str, change: Callable[[dict[str, bytes]], object]
) -> None:
    package = altered(write_package(tmp_path / "p"), change, as_directory)
    expected = hashlib.sha256(FILES["config.json"]).hexdigest()
    found = hashlib.sha256(b"[]").hexdigest()
    problem = {
        "differs": HashProblem("config.json", "differs", expected, found),
        "missing": HashProblem("config.json", "missing", expected, None),
        "unlisted": HashProblem("0/extra", "unlisted", None, None),
    }[kind]
    with open_package(package) as reader:
        assert reader.check_hashes() == [problem]
        with pytest.raises(PackageError) as caught:
            reader.verify_hashes()
        assert caught.value.message == f"{package}: {problem.describe()}"
        with pytest.raises(PackageError, match=f"'{problem.name}'"):
            reader.extract(tmp_path / "out")
        reader.extract(tmp_path / "other", "0/data")  # nothing wrong there
        reader.extract(tmp_path / "unchecked", verify=False)
        if kind == "differs":
            assert reader.read_bytes("config.json") == b"[]"
            with pytest.raises(PackageError, match=f"found SHA-256 {found}; expected {expected}"):
                reader.read_bytes("config.json", verify=True)
    assert not (tmp_path / "out/config.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe\xfd",
        b"[" * 100_000,
        b"{}",
        b'{"manifest_version": 2, "files": {}}',
        b'{"manifest_version": true, "files": {}}',
        b'{"manifest_version": 1}',
        b'{"manifest_version": 1, "files": []}',
        b'{"manifest_version": 1, "files": {"a": 1}}',
        b'{"manifest_version": 1, "files": {"a": "12"}}',
        b'{"manifest_version": 1, "files": {"a": "%s", "a": "%s"}}' % (b"0" * 64, b"1" * 64),
    ],
    ids=lambda text: repr(text[:40]),
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    with open_package(make_zip(tmp_path / "p", ("manifest.json", text))) as reader:
        for use in (lambda: reader.manifest, reader.check_hashes, reader.verify_hashes):
            with pytest.raises(PackageError, match=r"p: manifest\.json: ") as caught:
                use()
            assert "\n" not in caught.value.message


def test_hashing_reports_its_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with open_package(write_package(tmp_path / "p")) as reader:
        reader.check_hashes(lambda done, total: seen.append((done, total)))
    total = sum(map(len, FILES.values()))
    assert seen[-1] == (total, total)
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(seen))


def test_extraction_follows_no_link_and_overwrites_nothing(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "0").symlink_to(outside)
    with open_package(write_package(tmp_path / "p")) as reader:
        with pytest.raises(IngotError, match="link"):
            reader.extract(out)
        (out / "0").unlink()
        (out / "config.json").symlink_to(outside / "new")
        with pytest.raises(IngotError, match="exists"):
            reader.extract(out)
    assert os.listdir(outside) == []


# Random damage

DAMAGE = st.tuples(
    st.sampled_from(["flip", "set", "cut", "insert", "remove", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=12),
)


def damage(data: bytes, kind: str, where: float, extra: bytes) -> bytes:
    at = int(where * len(data))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << extra[0] % 8)]) + data[at + 1 :]
    if kind == "set":
        return data[:at] + extra + data[at + len(extra) :]
    if kind == "cut":
        return data[:at]
    if kind == "insert":
        return data[:at] + extra + data[at:]
    if kind == "remove":
        return data[:at] + data[at + len(extra) :]
    return data[:at] + data[at : at + 64] + data[at:]


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(DAMAGE, min_size=1, max_size=2))
def test_random_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    small = {**FILES, "0/data/model.bin": b"weights" * 20, "0/code/net/build.py": b"x = 1\n" * 9}
    package = write_package(folder / "p", small)
    original = package.read_bytes()
    data = original
    for step in steps:
        data = damage(data, *step)
        assume(data)
    package.write_bytes(data)
    fault = None
    try:
        with open_package(package) as reader:
            assert reader.manifest is not None
            for name in reader.names:
                reader.read_bytes(name)
            problems = reader.check_hashes()
            if not problems:
                assert contents(reader) == small
            reader.extract(folder / "out")
            assert not problems
    except PackageError as error:
        fault = error.message
    assert fault is None or (str(package) in fault and "\n" not in fault)
    for name, content in tree(folder / "out").items():
        assert name == "manifest.json" or content == small[name]
