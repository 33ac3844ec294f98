"""A package that is open for reading: its configuration, golden data, and how to load its model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import PackageError, UntrustedCodeError
from ..frameworks import REGISTRY, ModelSource
from .archive import READ_LIMIT, PackageReader, open_package
from .config import PackageConfig, parse_json_object

if TYPE_CHECKING:
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
        check_hashes: check each file that is read here against the manifest.

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
        own = self.platform_config.get("ingot")
        if self.config.platform == "python" and isinstance(own, Mapping):
            return str(own.get("framework", "python"))
        return self.config.platform

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
        if REGISTRY[self.framework].runs_code:
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
            tolerances = self.config.extras.get("test", {})
            return Golden.from_arrays(
                arrays,
                self.config.inputs,
                self.config.outputs,
                tolerances if isinstance(tolerances, Mapping) else {},
            )
        if trust_code and self.reader.has(NEUROPOD_GOLDEN_FILE):
            data = self._read(NEUROPOD_GOLDEN_FILE, _GOLDEN_LIMIT)
            return read_neuropod_golden(data, self.label)
        return None

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

    def _mapping(self) -> dict[str, Any]:
        mapping = self.platform_config.get("node_name_mapping") or {}
        # Some old packages of Neuropod's hold an empty object here, where a list is meant.
        operations = self.platform_config.get("init_op_names") or []
        if not isinstance(mapping, dict) or not isinstance(operations, list):
            raise PackageError(
                f"{self.label}: {PLATFORM_CONFIG_FILE}: expected an object node_name_mapping"
                " and a list init_op_names"
            )
        return {"node_name_mapping": mapping or None, "init_op_names": tuple(operations)}

    def _code_source(self, root: Path) -> dict[str, Any]:
        config = self.platform_config
        found: dict[str, Any] = {
            "code_root": root / "0" / "code",
            "data_root": root / "0" / "data",
        }
        own = config.get("ingot")
        if isinstance(own, Mapping):
            weights = own.get("weights")
            if weights is not None and not self.reader.has(f"0/data/{weights}"):
                raise PackageError(f"{self.label}: the weights 0/data/{weights} are missing")
            return found | {
                "entrypoint": own.get("entrypoint"),
                "entrypoint_kwargs": own.get("kwargs", {}),
                "weights": root / "0" / "data" / weights if weights else None,
            }
        for key in ("entrypoint", "entrypoint_package"):
            if not isinstance(config.get(key), str):
                raise PackageError(
                    f"{self.label}: {PLATFORM_CONFIG_FILE}: {key}: found {config.get(key)!r};"
                    " expected a string"
                )
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
