"""Packages made, read and damaged by the tests of the container; nothing here is a test."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from ingot.errors import PackageError
from ingot.runtime.archive import PackageReader, PackageWriter, open_package

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
