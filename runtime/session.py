"""``ingot.load``: a model that is ready to run, with every call checked."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import InputError
from ..frameworks import LoadOptions, Model, ModelSource, installed_version, open_model
from ..specs import TensorSpec, load_spec
from .detect import bare_source, detect, expand
from .package import Package
from .requirements import check_lock, check_platform_version
from .sources import source_from_spec
from .validation import TensorChecker


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    check: bool = True,
    trust_code: bool = False,
    ignore_lock: bool = False,
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

    Returns:
        the model, a context manager.

    Raises:
        ModelError: it cannot be read, is damaged, or is not trusted.
        MissingDependencyError: its framework, or a locked requirement, is not installed.
    """
    path = expand(path)
    options = LoadOptions(device, threads)
    kind = detect(path)
    if kind == "spec":
        spec = load_spec(path)
        return LoadedModel(spec.name, spec.model.framework, source_from_spec(spec), options, check)
    if kind != "package":
        return LoadedModel(path.stem, kind, bare_source(path, kind), options, check)
    with Package(path) as package:
        package.require_trust(trust_code)
        config = package.config
        check_platform_version(
            config.platform_version_semver,
            config.platform,
            installed_version(config.platform),
            package.label,
        )
        lock = package.lock
        if lock is not None and not ignore_lock:
            check_lock(lock, package.label)
        root, folder = path, None
        if package.reader.is_directory and package.runs_code() is None:
            package.reader.verify_hashes()
        else:
            # Code is copied even from a directory: what is imported must be what was hashed.
            root = folder = Path(tempfile.mkdtemp(prefix="ingot-"))
        try:
            if folder is not None:
                package.reader.extract(folder, "0/")
            source = package.source(root)
            return LoadedModel(config.name, config.platform, source, options, check, folder)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise


class LoadedModel:
    """A model that is loaded; made by :func:`load`.

    Attributes:
        name: the model's name.
        platform: the platform of its package, or its framework.
        inputs: what it takes.
        outputs: what it returns; empty for a bare TorchScript file, which does not say.
        framework_version: version of the framework that runs it.
    """

    def __init__(
        self,
        name: str,
        platform: str,
        source: ModelSource,
        options: LoadOptions,
        check: bool,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.platform = platform
        self._label = source.label
        self._cleanup = None
        self._model: Model | None = open_model(source, options)
        if folder is not None:
            self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.inputs: tuple[TensorSpec, ...] = tuple(self._model.inputs)
        self.outputs: tuple[TensorSpec, ...] = tuple(self._model.outputs)
        self.framework_version = self._model.version
        self._run = self._model.run
        self._output_names = [spec.name for spec in self.outputs]
        self._check_inputs = TensorChecker(self.inputs, "input", self._label) if check else None
        self._check_outputs = (
            TensorChecker(self.outputs, "output", self._label) if check and self.outputs else None
        )

    @property
    def native(self) -> Any:
        """The framework's own object (``nn.Module``, ``keras.Model``, ...), or None."""
        return self._open().native

    def infer(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Compute the outputs of one batch.

        Args:
            inputs: one array an input, by name. They are not copied where the framework can take a
                view, never changed, and never cast.
            outputs: the outputs wanted; None means all.

        Returns:
            arrays by output name, in the order of the spec (or of ``outputs``).

        Raises:
            InputError: a tensor does not fit the spec, or a requested output does not exist.
            ModelError: the model fails.
        """
        if self._model is None:
            self._open()
        if self._check_inputs is not None:
            inputs = self._check_inputs(inputs)
        if outputs is not None:
            outputs = self._requested(outputs)
        returned = self._run(inputs, outputs)
        names = self._output_names if outputs is None else outputs
        if not names:
            return returned
        result = {name: returned[name] for name in names if name in returned}
        if len(result) != len(names) and (self._check_outputs is not None or outputs is not None):
            missing = next(name for name in names if name not in returned)
            found = ", ".join(repr(name) for name in returned) or "nothing"
            raise InputError(
                f"{self._label}: the model did not return the output {missing!r}; found {found}"
            )
        if self._check_outputs is not None:
            return self._check_outputs(result, frozenset())
        return result

    def close(self) -> None:
        """Release the model and remove what was extracted; it cannot be used afterwards."""
        if self._model is not None:
            self._model.close()
            self._model = None
            del self._run
        if self._cleanup is not None:
            self._cleanup()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {spec.describe()}" for spec in self.inputs)
        return f"<LoadedModel {self.name!r} on {self.platform}: {inputs}>"

    def _open(self) -> Model:
        if self._model is None:
            raise InputError(f"{self._label}: the model is closed")
        return self._model

    def _requested(self, outputs: Sequence[str]) -> list[str]:
        """Return the requested outputs, each one once.

        Raises:
            InputError: it is no list of names, or one does not exist.
        """
        if isinstance(outputs, str) or not outputs:
            raise InputError(f"{self._label}: outputs: found {outputs!r}; expected a list of names")
        if not self.outputs:
            return list(dict.fromkeys(outputs))
        for name in outputs:
            if name not in self._output_names:
                from difflib import get_close_matches

                near = get_close_matches(name, self._output_names, n=1)
                known = ", ".join(repr(known) for known in self._output_names)
                raise InputError(
                    f"{self._label}: requested the output {name!r}; the model has {known}",
                    hint=f"did you mean {near[0]!r}?" if near else None,
                )
        return list(dict.fromkeys(outputs))
