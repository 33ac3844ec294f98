"""Collects the Python code of a package."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ModelError, SpecError, UsageError


def python_roots(code_path_spec: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Return the roots of a ``code_path_spec``, with ``~`` expanded.

    Raises:
        SpecError: an entry has other keys than ``python_root`` and ``dirs_to_package``.
    """
    for index, entry in enumerate(code_path_spec):
        if set(entry) != {"python_root", "dirs_to_package"}:
            raise SpecError(
                f"found the keys {', '.join(sorted(entry))};"
                " expected python_root and dirs_to_package",
                key=f"code_path_spec[{index}]",
            )
    return [Path(entry["python_root"]).expanduser() for entry in code_path_spec]


def collect_folders(code_path_spec: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """Return the files that a ``code_path_spec`` names, by path below ``0/code``.

    Args:
        code_path_spec: entries ``{"python_root": folder, "dirs_to_package": [subfolder, ...]}``;
            ``""`` is the whole root. Byte code and hidden files are left out.

    Raises:
        SpecError: an entry is malformed, or a folder is missing.
        UsageError: two roots give one file.
    """
    files: dict[str, Path] = {}
    for index, root in enumerate(python_roots(code_path_spec)):
        key = f"code_path_spec[{index}]"
        for folder in code_path_spec[index]["dirs_to_package"]:
            start = root / folder
            if Path(folder).is_absolute() or ".." in Path(folder).parts:
                raise SpecError(
                    f"found {folder!r}; expected a folder below python_root",
                    key=f"{key}.dirs_to_package",
                )
            if not start.is_dir():
                raise SpecError(f"{start}: no such folder", key=f"{key}.dirs_to_package")
            for path in _walk(start):
                name = path.relative_to(root).as_posix()
                if files.get(name, path) != path:
                    raise UsageError(f"{key}: both {files[name]} and {path} would be {name}")
                files[name] = path
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__" or path.suffix == ".pyc":
            continue
        if path.is_symlink() and path.is_dir():
            raise UsageError(f"{path}: found a link to a folder; expected folders and files")
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path


def collect_reachable(root: Path, module: str) -> dict[str, Path]:
    """Return a module and the modules below ``root`` that it imports, directly or not.

    Imports are read off the source, also those inside functions; nothing is run. An entry module
    that is not below ``root`` (an installed one) gives nothing.

    Args:
        root: the folder from which the entry module is imported.
        module: dotted name of the entry module.

    Raises:
        ModelError: a module cannot be parsed.
    """
    found: dict[str, Path] = {}
    pending = [module]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for path in _module_files(root, name):
            relative = path.relative_to(root).as_posix()
            if relative not in found:
                found[relative] = path
                pending.extend(_imports(path, _package_of(path, root)))
    return found


def _module_files(root: Path, name: str) -> Iterator[Path]:
    """The file of a dotted name, and the ``__init__.py`` of every package above it."""
    parts = name.split(".") if name else []
    for depth in range(len(parts) + 1):
        base = root.joinpath(*parts[:depth])
        init = base / "__init__.py"
        if init.is_file():
            yield init
        elif depth and base.with_name(f"{base.name}.py").is_file():
            yield base.with_name(f"{base.name}.py")
        elif not base.is_dir():
            return


def _package_of(path: Path, root: Path) -> list[str]:
    return list(path.parent.relative_to(root).parts)


def _imports(path: Path, package: list[str]) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ModelError(f"{path}:{line or 1}: not valid Python: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield prefix
            for alias in node.names:
                yield f"{prefix}.{alias.name}".strip(".")


def with_init_files(files: Mapping[str, Path]) -> dict[str, Path | None]:
    """Add an empty ``__init__.py`` (None) to the root and every folder that lacks one."""
    complete: dict[str, Path | None] = dict(files)
    folders = {PurePosixPath(".")}
    for name in files:
        folders.update(PurePosixPath(name).parents)
    for folder in folders:
        complete.setdefault((folder / "__init__.py").as_posix(), None)
    return complete
