"""A package that is open for reading: its configuration, golden data, and how to load its model."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import PackageError, UntrustedCodeError
from ..frameworks import ModelSource
from .archive import READ_LIMIT, PackageReader, open_package
from .archive_writer import MANIFEST
from .config import PackageConfig, is_basename, metadata_error, parse_json_object

if TYPE_CHECKING:
    import numpy as np

    from .golden import Golden

CONFIG_FILE = "config.json"
PLATFORM_CONFIG_FILE = "0/config.json"
LOCK_FILE = "0/requirements.lock"

GOLDEN_FILE = "test_data.npz"
"""Golden data: ``input/NAME`` and ``output/NAME`` arrays."""

NEUROPOD_GOLDEN_FILE = "test_data.pkl"
"""Golden data that Neuropod writes, a pickle."""

GOLDEN_FILES = (GOLDEN_FILE, NEUROPOD_GOLDEN_FILE)

_GOLDEN_LIMIT = 1 << 32
_GOLDEN_IN_MEMORY = 16 << 20

_CODE_FRAMEWORKS = ("python", "torch")
"""Adapters that may run a package of the platform ``python``."""

_PAYLOADS = {
    "torchscript": ("0/data/model.pt",),
    "tensorflow": ("0/data/model.pb", "0/data/savedmodel/saved_model.pb"),
    "onnx": ("0/data/model.onnx",),
    "keras": ("0/data/model.keras",),
}


class Package:
    """A package, read but not yet loaded; a context manager.

    Args:
        path: a directory or a zip.
        check_hashes: check each file that is read here against the manifest, which every package
            but those of early Neuropods must have.

    Raises:
        PackageError: it is malformed, damaged or unsafe.
    """

    def __init__(self, path: Path, *, check_hashes: bool = True) -> None:
        self.path = path
        self.label = str(path)
        self._check_hashes = check_hashes
        self.reader: PackageReader = open_package(path)
        try:
            self.config = PackageConfig.from_json(self._required(CONFIG_FILE), self.label)
            self.platform_config: Mapping[str, Any] = {}
            if self.reader.has(PLATFORM_CONFIG_FILE):
                data = self._read(PLATFORM_CONFIG_FILE)
                self.platform_config = parse_json_object(data, self.label, PLATFORM_CONFIG_FILE)
            self._check_platform_config()
            if check_hashes:
                self.require_manifest()
        except BaseException:
            self.reader.close()
            raise

    def __enter__(self) -> Package:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive."""
        self.reader.close()

    @property
    def framework(self) -> str:
        """The adapter that runs it: its platform, or ``torch`` for PyTorch code of Ingot's."""
        if self.config.platform == "python":
            return str(self.platform_config.get("ingot", {}).get("framework", "python"))
        return self.config.platform

    @property
    def written_by_ingot(self) -> bool:
        """Whether Ingot wrote it, by what it says of itself; else Neuropod did."""
        return bool(self.config.extras) or "ingot" in self.platform_config

    def require_manifest(self) -> None:
        """Check that it has a manifest, unless an early Neuropod may have written it.

        Raises:
            PackageError: it has none.
        """
        if self.written_by_ingot and self.reader.manifest is None:
            raise PackageError(
                f"{self.label}: found no {MANIFEST}; expected one, as Ingot wrote this package"
            )

    @property
    def lock(self) -> str | None:
        """The text of its requirements lock, or None."""
        if not self.reader.has(LOCK_FILE):
            return None
        return self._read(LOCK_FILE).decode("utf-8", errors="replace")

    @property
    def payload(self) -> str | None:
        """The file that holds the model, or None for Python code.

        Raises:
            PackageError: it is missing.
        """
        names = _PAYLOADS.get(self.config.platform)
        if names is None:
            return None
        for name in names:
            if self.reader.has(name):
                return name
        raise PackageError(f"{self.label}: found no {' or '.join(names)}")

    def runs_code(self) -> str | None:
        """Say why loading it runs code of its author's, or None when it does not."""
        # Never by what 0/config.json says: its author would then decide whether to be trusted.
        if self.config.platform == "python":
            return "it is Python code"
        if self.config.custom_ops:
            return f"it carries custom operators ({', '.join(self.config.custom_ops)})"
        return None

    def require_trust(self, trust_code: bool) -> None:
        """Check that the package may be loaded.

        Raises:
            UntrustedCodeError: loading runs its author's code, and nobody said that it may.
        """
        reason = self.runs_code()
        if reason is not None and not trust_code:
            raise UntrustedCodeError(
                f"{self.label}: loading this package runs its author's code: {reason}",
                hint="if you trust the author, pass --trust-code (trust_code=True in Python)",
            )

    def golden(self, trust_code: bool = False) -> Golden | None:
        """Return the golden data, or None when it carries none that may be read.

        Neuropod's own golden data is a pickle, read only when ``trust_code``.

        Raises:
            PackageError, InputError: it is malformed.
        """
        from .golden import Golden, read_neuropod_golden, read_npz

        if self.reader.has(GOLDEN_FILE):
            data = self._read(GOLDEN_FILE, _GOLDEN_LIMIT)
            arrays = read_npz(io.BytesIO(data), f"{self.label}: {GOLDEN_FILE}")
            return Golden.from_arrays(
                arrays,
                self.config.inputs,
                self.config.outputs,
                self.config.extras.get("test", {}),
            )
        if trust_code and self.reader.has(NEUROPOD_GOLDEN_FILE):
            data = self._read(NEUROPOD_GOLDEN_FILE, _GOLDEN_LIMIT)
            return read_neuropod_golden(data, self.label)
        return None

    def golden_headers(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]] | None:
        """Return dtype and shape of each array of the golden data, or None when there is none.

        The values are not decoded, nor compared with the manifest. Names are those of the file
        (``input/x``); Neuropod's pickle is not opened.

        Raises:
            PackageError, InputError: it is malformed.
        """
        from .golden import read_npz_headers

        if not self.reader.has(GOLDEN_FILE):
            return None
        where = f"{self.label}: {GOLDEN_FILE}"
        size = self.reader.size(GOLDEN_FILE)
        if size > _GOLDEN_LIMIT:
            raise PackageError(f"{where}: found {size} bytes; expected at most {_GOLDEN_LIMIT}")
        with (
            self.reader.open(GOLDEN_FILE) as packed,
            # An entry of a zip cannot be sought in, which the directory of an .npz needs.
            tempfile.SpooledTemporaryFile(_GOLDEN_IN_MEMORY) as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
            return read_npz_headers(file, where)

    def source(self, root: Path) -> ModelSource:
        """Describe the model to its adapter.

        Args:
            root: the folder into which the package was extracted, or the package itself.

        Raises:
            PackageError: a file that the model needs is missing, or ``0/config.json`` is malformed.
        """
        config = self.config
        ops = []
        for name in config.custom_ops:
            if not self.reader.has(f"0/ops/{name}"):
                raise PackageError(f"{self.label}: the custom operator 0/ops/{name} is missing")
            ops.append(root / "0" / "ops" / name)
        common: dict[str, Any] = {
            "framework": self.framework,
            "label": self.label,
            "inputs": config.inputs,
            "outputs": config.outputs,
            "custom_ops": tuple(ops),
        }
        if config.platform == "python":
            return ModelSource(**common, **self._code_source(root))
        payload = self.payload
        if payload is not None:
            common["path"] = root / payload
            if payload.endswith("saved_model.pb"):
                common["path"] = root / "0" / "data" / "savedmodel"
        if config.platform in ("tensorflow", "keras"):
            common |= self._mapping()
        return ModelSource(**common)

    def _check_platform_config(self) -> None:
        own = self.platform_config.get("ingot", {})
        if not isinstance(own, dict):
            raise self._malformed(self.platform_config, "ingot", "an object")
        if self.config.platform != "python" or "ingot" not in self.platform_config:
            return
        if own.get("framework", "python") not in _CODE_FRAMEWORKS:
            raise self._malformed(own, "ingot.framework", " or ".join(_CODE_FRAMEWORKS))
        if not isinstance(own.get("entrypoint"), str):
            raise self._malformed(own, "ingot.entrypoint", "a string (module:callable)")
        if not isinstance(own.get("kwargs", {}), dict):
            raise self._malformed(own, "ingot.kwargs", "an object")
        if not isinstance(own.get("recipe", {}), dict):
            raise self._malformed(own, "ingot.recipe", "an object")
        if own.get("weights") is not None and not is_basename(own["weights"]):
            raise self._malformed(own, "ingot.weights", "the name of a file below 0/data, or null")

    def _malformed(self, section: Mapping[str, Any], key: str, expected: str) -> PackageError:
        return metadata_error(self.label, PLATFORM_CONFIG_FILE, section, key, expected)

    def _mapping(self) -> dict[str, Any]:
        config = self.platform_config
        # Some old packages of Neuropod's hold an empty object here, where a list is meant.
        mapping = config.get("node_name_mapping") or {}
        operations = config.get("init_op_names") or []
        if not isinstance(mapping, dict) or not _all_strings(mapping.values()):
            raise self._malformed(config, "node_name_mapping", "an object of node names")
        if not isinstance(operations, list) or not _all_strings(operations):
            raise self._malformed(config, "init_op_names", "a list of operation names")
        return {"node_name_mapping": mapping or None, "init_op_names": tuple(operations)}

    def _code_source(self, root: Path) -> dict[str, Any]:
        config = self.platform_config
        found: dict[str, Any] = {
            "code_root": root / "0" / "code",
            "data_root": root / "0" / "data",
        }
        if "ingot" in config:
            own = config["ingot"]
            weights = own.get("weights")
            if weights is not None and not self.reader.has(f"0/data/{weights}"):
                raise PackageError(f"{self.label}: the weights 0/data/{weights} are missing")
            return found | {
                "entrypoint": own["entrypoint"],
                "entrypoint_kwargs": own.get("kwargs", {}),
                "weights": root / "0" / "data" / weights if weights else None,
                "recipe": own.get("recipe"),
            }
        for key in ("entrypoint", "entrypoint_package"):
            if not isinstance(config.get(key), str):
                raise self._malformed(config, key, "a string")
        return found | {
            "entrypoint": f"{config['entrypoint_package']}:{config['entrypoint']}",
            "always_pass_data_root": True,
        }

    def _required(self, name: str) -> bytes:
        if not self.reader.has(name):
            raise PackageError(
                f"{self.label}: not a package (it has no {name} at its root)",
            )
        return self._read(name)

    def _read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        return self.reader.read_bytes(name, limit, verify=self._check_hashes)


def _all_strings(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)
