"""The package container: round trips, determinism, atomic output."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import FILES, DirOrZip, contents, tree, write_package
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ingot.errors import IngotError, ModelError, OutputExistsError, UsageError
from ingot.runtime.archive import PackageWriter, open_package

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
