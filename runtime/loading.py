"""``ingot.load``: open a package, a bare model file or a spec, here or in worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import IngotError, UsageError
from ..frameworks import LoadOptions, Model, ModelSource, installed_version, open_model
from ..specs import load_spec
from .detect import bare_source, detect, expand
from .extraction import ExtractionFolder
from .package import Package
from .requirements import check_lock, check_platform_version
from .session import LoadedModel
from .sources import source_from_spec

if TYPE_CHECKING:
    from .isolation.limits import Isolation


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    check: bool = True,
    trust_code: bool = False,
    ignore_lock: bool = False,
    isolate: bool = False,
    python: str | Path | None = None,
    workers: int | None = None,
    timeout: float | None = None,
    start_timeout: float | None = None,
    memory_limit: int | str | None = None,
    cpus: str | Sequence[int] | None = None,
    install_lock: bool = False,
) -> LoadedModel:
    """Load a package, or a bare model file that says enough of itself.

    Args:
        path: a package (zip or directory), an ONNX, TorchScript or ``.keras`` file, a SavedModel
            folder, a Ludwig model folder, or a spec file.
        device: ``cpu``, ``gpu`` or ``gpu:N``; a missing GPU gives a warning and the CPU.
        threads: threads of one operator; None leaves the framework's default.
        check: check names, dtypes and shapes of every call. Hashes are always checked.
        trust_code: the package may run Python code and load native operators that it carries.
        ignore_lock: run even if locked requirements differ from what is installed.
        isolate: run it in worker processes; the arguments below need it.
        python: the workers' interpreter, a path or a name on PATH; this one when None.
        workers: how many processes serve calls at the same time, each with a copy of the model (1).
        timeout: seconds that one call may take; None has no limit.
        start_timeout: seconds in which a worker has to have loaded the model (120).
        memory_limit: memory of its own that a worker may use, in bytes or as ``"2G"``.
        cpus: the CPUs of the workers, numbers or ``"0,2-5"``; each gets a share of its own where
            there are enough.
        install_lock: install the package's locked requirements for its workers, into a folder that
            packages with the same lock share.

    Returns:
        the model, a context manager.

    Raises:
        ModelError: it cannot be read, is damaged, or is not trusted.
        IsolationError: a worker cannot be started, or does not load it in time.
        UsageError: an argument is impossible.
        MissingDependencyError: its framework, or a locked requirement, is not installed.
    """
    path = expand(path)
    options = LoadOptions(device, threads)
    isolation = _isolation(
        isolate,
        python=None if python is None else str(python),
        workers=workers,
        timeout=timeout,
        start_timeout=start_timeout,
        memory_limit=memory_limit,
        cpus=cpus,
        install_lock=install_lock or None,
    )
    kind = detect(path)
    if kind == "spec":
        spec = load_spec(path)
        source = source_from_spec(spec)
        return LoadedModel(
            spec.name, spec.model.framework, source.label, _open(source, options, isolation), check
        )
    if kind != "package":
        source = bare_source(path, kind)
        return LoadedModel(path.stem, kind, source.label, _open(source, options, isolation), check)
    with Package(path) as package:
        package.require_trust(trust_code)
        config = package.config
        if isolation is None:
            _check_version(package, installed_version(config.platform))
        lock = package.lock if not ignore_lock else None
        if lock is not None and isolation is None:
            check_lock(lock, package.label)
        root = path
        folder: ExtractionFolder | None = None
        if package.reader.is_directory and package.runs_code() is None:
            package.reader.verify_hashes()
        else:
            # Code is copied even from a directory: what is imported must be what was hashed.
            folder = ExtractionFolder()
            root = folder.path
        model: Model | None = None
        try:
            if folder is not None:
                package.reader.extract(root, "0/")
            source = package.source(root)
            if isolation is None:
                model = open_model(source, options)
            else:
                model = _open_isolated(package, source, options, isolation, lock)
            return LoadedModel(config.name, config.platform, source.label, model, check, folder)
        except BaseException:
            if model is not None:
                model.close()
            if folder is not None:
                folder.remove()
            raise


def _isolation(isolate: bool, **options: Any) -> Isolation | None:
    """Return how the model is isolated; None when it runs in this process.

    Raises:
        UsageError: options without ``isolate``, or impossible ones.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isolate:
        if given:
            name = next(iter(given))
            raise UsageError(
                f"{name} is for worker processes; found it without isolate",
                hint=f"--isolate --{name.replace('_', '-')} (isolate=True in Python)",
            )
        return None
    from .isolation.limits import Isolation, parse_cpus, parse_size

    if "memory_limit" in given:
        given["memory_limit"] = parse_size(given["memory_limit"], "memory_limit")
    if "cpus" in given:
        cpus = given["cpus"]
        given["cpus"] = parse_cpus(str(cpus)) if isinstance(cpus, str | int) else tuple(cpus)
    return Isolation(**given)


def _open(source: ModelSource, options: LoadOptions, isolation: Isolation | None) -> Model:
    if isolation is None:
        return open_model(source, options)
    from .isolation.model import IsolatedModel

    if isolation.install_lock:
        raise UsageError(
            f"{source.label}: install_lock: found no package; only packages have locked"
            " requirements"
        )
    return IsolatedModel(source, options, isolation)


def _open_isolated(
    package: Package,
    source: ModelSource,
    options: LoadOptions,
    isolation: Isolation,
    lock: str | None,
) -> Model:
    """Open the model of a package in workers, whose framework is checked in place of ours."""
    from .isolation.model import IsolatedModel

    path: list[str] = []
    if isolation.install_lock:
        from .isolation.lock_environment import install_lock

        if package.lock is None:
            raise UsageError(
                f"{package.label}: install_lock: the package has no 0/requirements.lock",
                hint="package it with requirements, or leave --install-lock out",
            )
        folder = install_lock(package.lock, isolation.interpreter(), package.label)
        path = [str(folder)]
    try:
        model = IsolatedModel(source, options, isolation, lock, path)
    except IngotError as error:
        found = getattr(error, "framework_version", None)
        if found is not None:
            _check_version(package, found)
        raise
    try:
        _check_version(package, model.version)
    except BaseException:
        model.close()
        raise
    return model


def _check_version(package: Package, installed: str | None) -> None:
    config = package.config
    check_platform_version(
        config.platform_version_semver, config.platform, installed, package.label
    )
