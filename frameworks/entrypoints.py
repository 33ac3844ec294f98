"""Import the user's Python code: several folders that share module names live in one process.

Each folder becomes a package of its own under a private name. Relative imports work because it is a
package; absolute imports of siblings (``import layers``) work because modules of the folder get an
``__import__`` of their own, which looks in the folder first. Nothing is added to ``sys.path``, and
no byte code is written beside the user's files.
"""

from __future__ import annotations

import builtins
import hashlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from ..errors import IngotError, MissingDependencyError, ModelError, SpecError
from .base import first_line

_PREFIX = "_ingot_code_"
_counter = 0
_roots: dict[str, Path] = {}


class _CodeLoader(SourceFileLoader):
    """Loads a module of a code folder with the folder's own ``__import__``."""

    def exec_module(self, module: ModuleType) -> None:
        root = module.__name__.partition(".")[0]
        module.__dict__["__builtins__"] = {
            **vars(builtins),
            "__import__": _importer(root),
        }
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType | None:
        # Byte code is neither read nor written: a cached file of another folder could be stale.
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _CodeFinder(MetaPathFinder):
    """Finds the modules below a code folder's private package."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX) or path is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _CodeLoader(spec.loader.name, spec.loader.path)
        return spec


def _is_local(root: str, top: str) -> bool:
    """Whether ``top`` is a module of the folder, by the rule of a folder first on ``sys.path``."""
    spec = PathFinder.find_spec(top, [str(_roots[root])])
    if spec is None:
        return False
    if spec.loader is not None:
        return True
    # A folder without __init__.py gives way to an installed module, as it does in Python.
    return top not in sys.modules and find_spec(top) is None


def _importer(root: str) -> Callable[..., Any]:
    def import_from_code(
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level == 0:
            top = name.partition(".")[0]
            if _is_local(root, top):
                if fromlist:
                    return builtins.__import__(f"{root}.{name}", globals, locals, fromlist, 0)
                builtins.__import__(f"{root}.{name}", globals, locals, (), 0)
                return sys.modules[f"{root}.{top}"]
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    return import_from_code


def _root_package(folder: Path) -> str:
    """Return the name of a fresh private package whose modules are the files of ``folder``."""
    global _counter
    if not any(isinstance(finder, _CodeFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CodeFinder())
    _counter += 1
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    name = f"{_PREFIX}{_counter}_{digest}"
    _roots[name] = folder
    init = folder / "__init__.py"
    spec = ModuleSpec(name, None, is_package=True)
    if init.is_file():
        spec = ModuleSpec(name, _CodeLoader(name, str(init)), origin=str(init), is_package=True)
    spec.submodule_search_locations = [str(folder)]
    module = module_from_spec(spec)
    sys.modules[name] = module
    if spec.loader is not None:
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name], _roots[name]
            raise
    return name


class CodeFolder:
    """The importable modules of one folder, kept apart from those of any other folder.

    Args:
        folder: where the modules lie; None when only installed modules are meant.
        label: the spec or package that names the code, for messages.
        error: raised when an entry point cannot be found or imported: ``SpecError`` for the code of
            a spec, ``ModelError`` for that of a package.
    """

    def __init__(
        self, folder: Path | None, label: str, error: type[IngotError] = SpecError
    ) -> None:
        self.folder = folder
        self.label = label
        self._error = error
        self._root: str | None = None

    def attribute(self, entrypoint: str, key: str = "model.entrypoint") -> Any:
        """Return what ``module:attribute`` names, from this folder or an installed module.

        Raises:
            IngotError: the module does not exist or does not import, or has no such attribute.
        """
        module_name, _, attribute = entrypoint.partition(":")
        where = f"{self.label}: {key} {entrypoint!r}"
        module = self._module(module_name, where)
        value: Any = module
        for part in attribute.split("."):
            try:
                value = getattr(value, part)
            except AttributeError:
                names = [name for name in vars(module) if not name.startswith("_")]
                raise self._error(
                    f"{where}: {module_name} has no attribute {part!r}",
                    hint=_nearest(attribute, names),
                ) from None
        return value

    def callable(self, entrypoint: str, key: str = "model.entrypoint") -> Callable[..., Any]:
        """Return the callable that ``module:attribute`` names.

        Raises:
            IngotError: as for :meth:`attribute`, or it cannot be called.
        """
        value = self.attribute(entrypoint, key)
        if not callable(value):
            raise self._error(
                f"{self.label}: {key} {entrypoint!r}: found a {type(value).__name__};"
                " expected something that can be called"
            )
        return value

    def close(self) -> None:
        """Forget the folder's modules; objects made from them stay usable."""
        if self._root is None:
            return
        for name in list(sys.modules):
            if name == self._root or name.startswith(f"{self._root}."):
                del sys.modules[name]
        self._root = None

    def _module(self, name: str, where: str) -> ModuleType:
        try:
            if self.folder is not None:
                if self._root is None:
                    self._root = _root_package(self.folder)
                if _is_local(self._root, name.partition(".")[0]):
                    return _import(f"{self._root}.{name}")
            return _import(name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").removeprefix(f"{self._root}.")
            if missing == name or name.startswith(f"{missing}."):
                near = [path.stem for path in sorted((self.folder or Path()).glob("*.py"))]
                beside = f" in {self.folder}" if self.folder else ""
                raise self._error(
                    f"{where}: no module {missing!r}{beside}, and none installed",
                    hint=_nearest(missing, near),
                ) from error
            raise MissingDependencyError(
                f"{where}: its code imports {missing!r}, which is not installed"
            ) from error
        except Exception as error:
            raise self._error(
                f"{where}: importing it failed: {type(error).__name__}: {first_line(error)}"
                f"{_location(error, self.folder)}"
            ) from error


def _import(name: str) -> ModuleType:
    from importlib import import_module

    return import_module(name)


def _nearest(name: str, names: Sequence[str]) -> str | None:
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _location(error: BaseException, folder: Path | None) -> str:
    """Return `` (net.py:12)``: the innermost line of the user's own code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}:{error.lineno})"
    found = ""
    traceback = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if folder is not None and file.startswith(str(folder)):
            found = f" ({Path(file).name}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    return found


def user_code_error(label: str, what: str, error: Exception, folder: Path | None) -> IngotError:
    """Describe an exception that the user's own code raised, in one line with its place.

    Args:
        label: the spec or package.
        what: what was being done (``"the entry point 'net:build'"``).
        error: the exception.
        folder: where the user's code lies.
    """
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return MissingDependencyError(
            f"{label}: {what} imports {error.name!r}, which is not installed"
            f"{_location(error, folder)}"
        )
    return ModelError(
        f"{label}: {what} raised {type(error).__name__}: {first_line(error)}"
        f"{_location(error, folder)}"
    )
