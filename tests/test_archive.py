"""The package container: round trips, determinism, atomic output, and archives made to harm."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import stat
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ingot.errors import IngotError, ModelError, OutputExistsError, PackageError, UsageError
from ingot.runtime import archive_reader
from ingot.runtime.archive import HashProblem, PackageReader, PackageWriter, open_package

FILES = {
    "config.json": b"{}",
    "0/config.json": b'{"a": 1}' * 100,
    "0/data/model.bin": bytes(range(256)) * 5000,
    "0/code/net/__init__.py": b"",
    "0/code/net/build.py": b"def build(): ...\n" * 50,
    "test_data.npz": b"z" * 1000,
}

DirOrZip = pytest.mark.parametrize("as_directory", [False, True], ids=["zip", "directory"])


def write_package(
    target: Path,
    files: Mapping[str, bytes] = FILES,
    folders: tuple[str, ...] = ("0/ops/",),
    **options: bool,
) -> Path:
    with PackageWriter(target, **options) as writer:
        for name, data in files.items():
            writer.add_bytes(name, data)
        for name in folders:
            writer.add_directory(name)
        writer.write()
        writer.commit()
    return target


def contents(reader: PackageReader) -> dict[str, bytes]:
    return {name: reader.read_bytes(name) for name in reader.names if name != "manifest.json"}


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def make_zip(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return path


def refused(path: Path, *words: str) -> None:
    """Check that a package is refused on opening, in one line with its path and these words."""
    with pytest.raises(PackageError) as caught, open_package(path):
        pass
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message
    for word in (str(path), *words):
        assert word in caught.value.message


# Round trips


@DirOrZip
def test_what_is_written_is_read_back(tmp_path: Path, as_directory: bool) -> None:
    target = write_package(tmp_path / "p.ingot", as_directory=as_directory)
    with open_package(target) as reader:
        assert reader.is_directory is as_directory
        assert list(reader.names) == sorted([*FILES, "manifest.json"])
        assert contents(reader) == FILES
        assert reader.size("config.json") == 2
        assert reader.total_size == sum(reader.size(name) for name in reader.names)
        assert reader.manifest == {n: hashlib.sha256(d).hexdigest() for n, d in FILES.items()}
        assert reader.check_hashes() == []
        reader.verify_hashes()
        with reader.open("0/data/model.bin") as stream:
            assert stream.read(3) == b"\0\1\2"
        reader.extract(tmp_path / "out")
    assert {k: v for k, v in tree(tmp_path / "out").items() if k != "manifest.json"} == FILES
    assert (tmp_path / "out/0/ops").is_dir()
    assert sorted(os.listdir(tmp_path)) == ["out", "p.ingot"]


def test_the_manifest_lists_every_file_but_itself_in_the_fixed_form(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_package(tmp_path / "p.zip")) as archive:
        text = archive.read("manifest.json").decode()
    files = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    document = {"manifest_version": 1, "files": files}
    assert text == json.dumps(document, indent=4, sort_keys=True) + "\n"


def test_a_zip_is_sorted_dated_and_compressed_as_the_format_says(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_package(tmp_path / "p.zip")) as archive:
        assert archive.testzip() is None
        infos = {info.filename: info for info in archive.infolist()}
        assert archive.namelist() == sorted([*FILES, "manifest.json", "0/ops/"])
    for name, info in infos.items():
        assert info.date_time == (2000, 1, 1, 0, 0, 0)
        assert info.create_system == 3
        assert stat.S_IMODE(info.external_attr >> 16) == (0o755 if name.endswith("/") else 0o644)
    assert infos["0/data/model.bin"].compress_type == zipfile.ZIP_STORED
    assert infos["test_data.npz"].compress_type == zipfile.ZIP_STORED
    assert infos["0/config.json"].compress_type == zipfile.ZIP_DEFLATED


def test_store_compresses_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_package(tmp_path / "p.zip", store=True)) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_files_and_trees_are_streamed_from_their_sources(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "net/empty").mkdir(parents=True)
    (source / "net/build.py").write_bytes(b"code")
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(3_500_000))
    with PackageWriter(tmp_path / "p.zip") as writer:
        writer.add_file("0/data/big.bin", big)
        writer.add_file("zz/big.bin", big)  # sorts after the manifest
        writer.add_tree("0/code", source)
        writer.write()
        assert writer.commit() == tmp_path / "p.zip"
    with open_package(tmp_path / "p.zip") as reader:
        assert reader.read_bytes("0/data/big.bin") == big.read_bytes()
        assert reader.read_bytes("zz/big.bin") == big.read_bytes()
        assert reader.read_bytes("0/code/net/build.py") == b"code"
        assert reader.check_hashes() == []
        reader.extract(tmp_path / "out", "0/code/")
    assert tree(tmp_path / "out") == {"0/code/net/build.py": b"code"}
    assert (tmp_path / "out/0/code/net/empty").is_dir()


def test_the_bytes_depend_on_the_contents_alone(tmp_path: Path) -> None:
    first = write_package(tmp_path / "first.zip")
    source = tmp_path / "source"
    source.mkdir()
    previous = os.umask(0o077)
    try:
        with PackageWriter(tmp_path / "second.zip") as writer:
            for number, (name, data) in enumerate(reversed(FILES.items())):
                file = source / str(number)
                file.write_bytes(data)
                file.chmod(0o755)
                os.utime(file, (number, number))
                writer.add_file(name, file)
            writer.add_directory("0/ops")
            writer.write()
            second = writer.commit()
    finally:
        os.umask(previous)
    assert first.read_bytes() == second.read_bytes()


@DirOrZip
def test_the_output_has_the_permissions_that_the_umask_allows(
    tmp_path: Path, as_directory: bool
) -> None:
    previous = os.umask(0o027)
    try:
        with PackageWriter(tmp_path / "p", as_directory=as_directory) as writer:
            writer.add_bytes("config.json", b"{}")
            temporary = writer.write()
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".p")
            assert stat.S_IMODE(temporary.stat().st_mode) & 0o077 == 0
            writer.commit()
    finally:
        os.umask(previous)
    mode = stat.S_IMODE((tmp_path / "p").stat().st_mode)
    assert mode == (0o750 if as_directory else 0o640)


def test_extracted_files_are_private(tmp_path: Path) -> None:
    with open_package(write_package(tmp_path / "p")) as reader:
        reader.extract(tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


PARTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1, max_size=8
).filter(lambda part: part not in (".", "..") and len(part.encode()) < 200)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.dictionaries(NAMES, st.binary(max_size=300), max_size=6), as_directory=st.booleans()
)
@example(files={"0/data/é\n": b"1", "a!": b"", "a/b": b"2"}, as_directory=False)
def test_any_tree_of_names_and_bytes_survives(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], as_directory: bool
) -> None:
    target = tmp_path_factory.mktemp("any") / "p"
    names = set(files)
    folders = {"/".join(n.split("/")[:i]) for n in names for i in range(1, n.count("/") + 1)}
    unfit = names & folders or "manifest.json" in names | folders
    unfit = unfit or any(
        name[1:2] == ":" and name[0].isascii() and name[0].isalpha() for name in names
    )
    if unfit:
        with pytest.raises(UsageError):
            write_package(target, files, as_directory=as_directory, folders=())
        return
    write_package(target, files, as_directory=as_directory, folders=())
    with open_package(target) as reader:
        assert contents(reader) == files
        assert reader.check_hashes() == []
        reader.extract(target.parent / "out")
    assert tree(target.parent / "out") == {**files, **contents_of_manifest(target)}


def contents_of_manifest(package: Path) -> dict[str, bytes]:
    with open_package(package) as reader:
        return {"manifest.json": reader.read_bytes("manifest.json")}


# Writing: names, sources, atomic output


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a//b", "a/", "./a", "a/..", "../a", "a\\b", "a\0b", "C:/a", "\udc80", "a" * 5000],
)
def test_unfit_names_are_refused(tmp_path: Path, name: str) -> None:
    with PackageWriter(tmp_path / "p") as writer, pytest.raises(UsageError):
        writer.add_bytes(name, b"")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a"), ("manifest.json",)],
    ids=str,
)
def test_names_that_exclude_each_other_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with PackageWriter(tmp_path / "p") as writer:
        for name in names[:-1]:
            writer.add_bytes(name, b"")
        with pytest.raises(UsageError):
            writer.add_bytes(names[-1], b"")


def test_a_tree_with_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/link").symlink_to("/etc/passwd")
    with (
        PackageWriter(tmp_path / "p") as writer,
        pytest.raises(UsageError, match=r"link.*symbolic link"),
    ):
        writer.add_tree("0/code", tmp_path / "source")


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "p") as writer:
        with pytest.raises(ModelError, match=r"absent\.bin"):
            writer.add_file("0/data/x", tmp_path / "absent.bin")
        with pytest.raises(ModelError, match="absent"):
            writer.add_tree("0/code", tmp_path / "absent")


@DirOrZip
def test_an_exception_leaves_nothing(tmp_path: Path, as_directory: bool) -> None:
    def fail_midway() -> None:
        with PackageWriter(tmp_path / "p", as_directory=as_directory) as writer:
            writer.add_bytes("config.json", b"{}")
            assert writer.write().exists()
            raise KeyError

    with pytest.raises(KeyError):
        fail_midway()
    assert os.listdir(tmp_path) == []


@DirOrZip
def test_a_source_that_goes_away_leaves_nothing(tmp_path: Path, as_directory: bool) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"1")
    with PackageWriter(tmp_path / "p", as_directory=as_directory) as writer:
        writer.add_bytes("0/a", b"1")
        writer.add_file("0/data/x", source)
        source.unlink()
        with pytest.raises(ModelError, match=r"source\.bin"):
            writer.write()
        assert os.listdir(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_nothing_is_committed_unless_asked(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "p") as writer:
        with pytest.raises(UsageError):
            writer.commit()
        writer.write()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_existing_output_is_refused_before_any_work(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "p"
    if kind == "file":
        target.write_bytes(b"old")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(OutputExistsError) as caught:
        PackageWriter(target)
    assert caught.value.exit_code == 2
    assert "--force" in str(caught.value.hint)


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "p") as writer:
        writer.write()
        (tmp_path / "p").write_bytes(b"other")
        with pytest.raises(OutputExistsError):
            writer.commit()
    assert tree(tmp_path) == {"p": b"other"}


@pytest.mark.parametrize("old", [False, True], ids=["over zip", "over directory"])
@DirOrZip
def test_force_replaces_a_package_of_either_kind(
    tmp_path: Path, as_directory: bool, old: bool
) -> None:
    target = write_package(tmp_path / "p", as_directory=old)
    write_package(target, {"new": b"1"}, as_directory=as_directory, force=True)
    with open_package(target) as reader:
        assert contents(reader) == {"new": b"1"}
        assert reader.is_directory is as_directory
    assert os.listdir(tmp_path) == ["p"]


def test_force_keeps_the_old_output_until_the_commit(tmp_path: Path) -> None:
    target = write_package(tmp_path / "p", as_directory=True)
    before = tree(target)
    with PackageWriter(target, force=True) as writer:
        writer.write()
    assert tree(target) == before
    assert os.listdir(tmp_path) == ["p"]


def test_force_never_removes_a_folder_that_is_no_package(tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "diary.txt").write_text("dear")
    with pytest.raises(OutputExistsError, match="holds no package"):
        PackageWriter(target, force=True)
    assert tree(target) == {"diary.txt": b"dear"}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(IngotError, match=r"there is no folder .*absent"):
        PackageWriter(tmp_path / "absent/p")


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(IngotError, match="no permission"):
        PackageWriter(tmp_path / "p")


@DirOrZip
def test_a_file_size_limit_is_one_clear_line(tmp_path: Path, as_directory: bool) -> None:
    script = textwrap.dedent(f"""
        from pathlib import Path
        from ingot.errors import IngotError
        from ingot.runtime.archive import PackageWriter
        try:
            with PackageWriter(Path("p"), as_directory={as_directory}) as writer:
                writer.add_bytes("0/data/x", bytes(8 << 20))
                writer.write()
        except IngotError as error:
            print(type(error).__name__, error.message, repr(error.__cause__))
    """)
    limit = 3 << 20
    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.stdout.startswith("IngotError p: cannot write: File too large OSError(")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot run mount: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@DirOrZip
def test_a_full_disk_is_one_clear_line(small_disk: Path, as_directory: bool) -> None:
    with PackageWriter(small_disk / "p", as_directory=as_directory) as writer:
        writer.add_bytes("0/a.txt", os.urandom(5 << 20))
        with pytest.raises(IngotError, match="p: cannot write: No space left on device") as caught:
            writer.write()
    assert isinstance(caught.value.__cause__, OSError)
    assert "\n" not in caught.value.message
    assert os.listdir(small_disk) == []


def test_extracting_to_a_full_disk_is_one_clear_line(small_disk: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", {"0/data/x": os.urandom(5 << 20)})
    with (
        open_package(package) as reader,
        pytest.raises(IngotError, match="cannot write: No space left"),
    ):
        reader.extract(small_disk / "out")
    assert tree(small_disk) == {}


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
