"""What all packagers share: options, golden data, the test of the finished package."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, TypeVar

import numpy as np

from .. import __version__
from ..errors import CheckError, InputError, UsageError
from ..frameworks import REGISTRY, ModelSource, installed_version
from ..frameworks.base import file_sha256
from ..runtime.archive import PackageWriter
from ..runtime.child import SourceRun, check_package, run_source
from ..runtime.config import DEVICES, FORMAT_VERSION, PackageConfig, dump_json
from ..runtime.golden import DEFAULT_ATOL, DEFAULT_RTOL, Golden, refuse_nan
from ..runtime.package import GOLDEN_FILE
from ..runtime.validation import TensorChecker
from ..specs import TensorSpec, parse_tensor_specs

PathLike = str | os.PathLike[str]
Array = np.ndarray[Any, Any]
Function = TypeVar("Function", bound=Callable[..., Path])
TensorSpecs = Iterable[TensorSpec | Mapping[str, Any]]


class PackageArguments(TypedDict, total=False):
    """Keyword arguments that every ``create_*_package`` takes; see :class:`PackageOptions`."""

    platform_version_semver: str
    input_tensor_device: Mapping[str, str] | None
    default_input_tensor_device: str
    custom_ops: Sequence[PathLike]
    package_as_zip: bool
    test_input_data: Mapping[str, Any] | None
    test_expected_out: Mapping[str, Any] | None
    persist_test_data: bool
    rtol: float
    atol: float
    store: bool
    force: bool
    license: str | None
    provenance: Mapping[str, Any]
    on_finished: Callable[[str], None] | None


@dataclass(frozen=True)
class PackageOptions:
    """Options that every ``create_*_package`` takes, with their defaults.

    Attributes:
        platform_version_semver: npm-style range of framework versions that may run the package.
        input_tensor_device: ``"GPU"`` or ``"CPU"`` by input name.
        default_input_tensor_device: the device of inputs that ``input_tensor_device`` leaves out.
        custom_ops: shared libraries with operators that the model needs.
        package_as_zip: write a zip; otherwise a directory.
        test_input_data: golden inputs; the finished package is run on them in a fresh process.
        test_expected_out: golden outputs; when missing, the source's own outputs are recorded.
        persist_test_data: keep golden data in the package.
        rtol: permitted relative difference of golden outputs.
        atol: permitted absolute difference of golden outputs.
        store: compress nothing in the zip; by default only the weights are not.
        force: replace an existing output.
        license: SPDX expression.
        provenance: what else to record about the origin of the package (JSON values).
        on_finished: called with the sha256 of the finished package (:func:`package_sha256`).
    """

    platform_version_semver: str = "*"
    input_tensor_device: Mapping[str, str] | None = None
    default_input_tensor_device: str = "GPU"
    custom_ops: Sequence[PathLike] = ()
    package_as_zip: bool = True
    test_input_data: Mapping[str, Any] | None = None
    test_expected_out: Mapping[str, Any] | None = None
    persist_test_data: bool = True
    rtol: float = DEFAULT_RTOL
    atol: float = DEFAULT_ATOL
    store: bool = False
    force: bool = False
    license: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    on_finished: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.test_expected_out is not None and self.test_input_data is None:
            raise UsageError("test_expected_out without test_input_data: there is nothing to run")
        if self.default_input_tensor_device not in DEVICES:
            raise UsageError(
                f"default_input_tensor_device: found {self.default_input_tensor_device!r};"
                " expected CPU or GPU"
            )


class PackageBuilder:
    """Builds one package: collects its files, writes it, tests it, and only then puts it in place.

    Use it as a context manager; leaving it before :meth:`finish` leaves nothing behind.

    Args:
        path: the package to make.
        model_name: the model's name.
        platform: one of ``runtime.config.PLATFORMS``.
        arguments: the common arguments, as the caller gave them.

    Raises:
        OutputExistsError: the path exists already, and ``force`` was not given.
        TypeError: an argument that no packager has.
    """

    def __init__(
        self, path: PathLike, model_name: str, platform: str, arguments: PackageArguments
    ) -> None:
        self.options = PackageOptions(**arguments)
        self.path = Path(path).expanduser()
        if not isinstance(model_name, str) or not model_name:
            raise UsageError(f"model_name: found {model_name!r}; expected a name")
        self.name = model_name
        self.platform = platform
        self.sha256 = ""
        self._writer = PackageWriter(
            self.path,
            as_directory=not self.options.package_as_zip,
            store=self.options.store,
            force=self.options.force,
        )
        self.custom_ops = self._add_custom_ops()

    def __enter__(self) -> PackageBuilder:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, value, traceback)

    def _add_custom_ops(self) -> tuple[Path, ...]:
        paths = tuple(Path(path).expanduser() for path in self.options.custom_ops)
        self.add_directory("0/ops")
        for path in paths:
            self.add_file(f"0/ops/{path.name}", path)
        return paths

    def add_file(self, name: str, path: Path) -> None:
        """Add a file of the user's.

        Raises:
            ModelError: it is missing.
        """
        self._writer.add_file(name, path)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a file that is made here."""
        self._writer.add_bytes(name, data)

    def add_directory(self, name: str) -> None:
        """Add a folder, which may stay empty."""
        self._writer.add_directory(name)

    def add_tree(self, name: str, folder: Path) -> None:
        """Add a folder with everything below it."""
        self._writer.add_tree(name, folder)

    def add_platform_config(self, config: Mapping[str, Any]) -> None:
        """Add ``0/config.json``."""
        self.add_bytes("0/config.json", dump_json(dict(config)))

    def finish(
        self,
        input_spec: TensorSpecs | None,
        output_spec: TensorSpecs | None,
        source: ModelSource | None,
        run: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = None,
    ) -> Path:
        """Write the package, test it in a fresh process, and move it to its place.

        Args:
            input_spec: the inputs; None reads them off the source.
            output_spec: the outputs, likewise.
            source: how to run the model as it was before packaging, to record golden outputs.
            run: runs the model in this process instead, when it has no source on disk.

        Returns:
            the path of the package.

        Raises:
            SpecError: a tensor spec is invalid.
            CheckError: the package's outputs differ from the expected ones.
            IngotError: whatever running the model, or writing the package, raised.
        """
        inputs, outputs, golden = self._golden(input_spec, output_spec, source, run)
        self._check_devices(inputs)
        options = self.options
        extras: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "provenance": self._provenance(source),
        }
        if options.license:
            extras["license"] = options.license
        if golden is not None and options.persist_test_data:
            extras["test"] = {"rtol": options.rtol, "atol": options.atol}
            self.add_bytes(GOLDEN_FILE, golden.to_npz())
        devices = dict(options.input_tensor_device or {})
        config = PackageConfig(
            name=self.name,
            platform=self.platform,
            inputs=inputs,
            outputs=outputs,
            platform_version_semver=options.platform_version_semver,
            custom_ops=tuple(path.name for path in self.custom_ops),
            input_tensor_device={
                spec.name: devices.get(spec.name, options.default_input_tensor_device)
                for spec in inputs
            },
            extras=extras,
        )
        self.add_bytes("config.json", config.to_json())
        written = self._writer.write()
        # Hashed while the other process runs the model, so that it takes no time of its own.
        with ThreadPoolExecutor(1) as pool:
            digest = pool.submit(package_sha256, written)
            # The lock is for the environment that serves the model, which may not be this one.
            differences = check_package(written, golden, label=str(self.path), ignore_lock=True)
            self.sha256 = digest.result()
        if differences:
            more = f" (and {len(differences) - 1} more outputs)" if len(differences) > 1 else ""
            raise CheckError(
                f"{self.path}: not written, because the package does not reproduce its golden"
                f" data: {differences[0].message}{more}"
            )
        path = self._writer.commit()
        if options.on_finished is not None:
            options.on_finished(self.sha256)
        return path

    def _golden(
        self,
        input_spec: TensorSpecs | None,
        output_spec: TensorSpecs | None,
        source: ModelSource | None,
        run: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None,
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Golden | None]:
        """Settle the specs and the golden data, running the source as far as that needs it."""
        options, label = self.options, self.name
        inputs = parsed(input_spec, "input_spec")
        outputs = parsed(output_spec, "output_spec")
        arrays = _as_arrays(options.test_input_data)
        if arrays is not None and inputs is not None:
            arrays = TensorChecker(inputs, "input", f"{label}: golden data")(arrays)
        expected = _as_arrays(options.test_expected_out)
        recording = arrays is not None and expected is None
        # Code is loaded from its source even when nothing is recorded: its errors name the user's
        # own files, and not a copy of them.
        is_code = source is not None and source.entrypoint is not None
        if inputs is None or outputs is None or is_code or (recording and run is None):
            if source is None:
                raise UsageError(f"{label}: input_spec and output_spec are needed")
            ran: SourceRun = run_source(source, arrays if recording else None)
            inputs = ran.inputs if inputs is None else inputs
            outputs = ran.outputs if outputs is None else outputs
            untold = (input_spec is None and not inputs) or (output_spec is None and not outputs)
            if untold or any(spec.dtype is None for spec in (*inputs, *outputs)):
                raise UsageError(
                    f"{label}: the model does not say what it takes and returns",
                    hint="describe its inputs and outputs in a spec",
                )
            if recording:
                expected = dict(ran.arrays)
        elif recording and run is not None and arrays is not None:
            expected = dict(run(arrays))
        if arrays is None:
            return inputs, outputs, None
        assert expected is not None
        names = [spec.name for spec in outputs]
        if recording:
            expected = {name: expected[name] for name in names if name in expected}
            TensorChecker(outputs, "output", label)(expected)
        for name in expected:
            if name not in names:
                raise InputError(
                    f"{label}: golden data: unknown output {name!r}; expected {', '.join(names)}"
                )
        refuse_nan(expected, label)
        return inputs, outputs, Golden(arrays, expected, options.rtol, options.atol)

    def _check_devices(self, inputs: Sequence[TensorSpec]) -> None:
        names = [spec.name for spec in inputs]
        for name, device in (self.options.input_tensor_device or {}).items():
            if name not in names or device not in DEVICES:
                raise UsageError(
                    f"input_tensor_device: found {name!r}: {device!r};"
                    f" expected CPU or GPU for one of {', '.join(names)}"
                )

    def _provenance(self, source: ModelSource | None) -> dict[str, Any]:
        framework = self.platform if source is None else source.framework
        version = installed_version(framework)
        found: dict[str, Any] = {"created_by": f"ingot {__version__}"}
        if version is not None:
            distributions = REGISTRY[framework].distributions
            name = distributions[0] if distributions else framework
            found["framework"] = {"name": name, "version": version}
        return found | dict(self.options.provenance)


def packager(function: Function) -> Function:
    """Give a ``create_*_package`` the explicit signature that its ``**arguments`` stand for."""
    signature = inspect.signature(function)
    own = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
    common = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=item.type,
            default={} if item.default is MISSING else item.default,
        )
        for item in fields(PackageOptions)
    ]
    known = [item.name for item in (*own, *common)]

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}{hint}"
                )
        return function(*args, **kwargs)

    checked.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def package_sha256(path: Path) -> str:
    """Return the sha256 of a zip, or of the ``manifest.json`` of a directory, which covers it."""
    return file_sha256(path / "manifest.json" if path.is_dir() else path)


def parsed(specs: TensorSpecs | None, key: str) -> tuple[TensorSpec, ...] | None:
    """Check tensor specs; None stays None.

    Raises:
        SpecError: they are invalid.
    """
    return None if specs is None else parse_tensor_specs(specs, key)


def _as_arrays(values: Mapping[str, Any] | None) -> dict[str, Array] | None:
    if values is None:
        return None
    arrays = {}
    for name, value in values.items():
        try:
            arrays[str(name)] = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"golden data: {name!r} is no array: {error}") from error
    return arrays


def exactly_one(**candidates: Any) -> str:
    """Return the name of the one argument that was given.

    Raises:
        UsageError: none was, or more than one.
    """
    given = [name for name, value in candidates.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UsageError(f"found {found}; expected exactly one of {', '.join(candidates)}")
    return given[0]
