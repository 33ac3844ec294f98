"""The interface between Ingot and a framework: where a model comes from, and how it is called."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError
from ..specs.tensors import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

OutputMemory = Callable[[Mapping[str, tuple[str, tuple[int, ...]]]], "dict[str, Any]"]
"""Makes arrays for outputs, given element type (no string) and shape of each one by name."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: what a spec, a package or a bare file says about it.

    Attributes:
        framework: a key of ``frameworks.REGISTRY``.
        label: what the user called it (a path), for messages.
        inputs: the declared inputs; None when the model itself has to say.
        outputs: the declared outputs; None when the model itself has to say.
        path: the model file or folder (onnx, torchscript, keras, tensorflow, ludwig).
        entrypoint: ``module:attribute`` of Python code (torch, python).
        entrypoint_kwargs: keyword arguments of the entry point.
        code_root: the folder whose modules the entry point may import.
        data_files: files that the entry point finds in its data folder, by name there.
        data_root: the folder that is handed to the entry point, when it exists already.
        always_pass_data_root: hand over the data folder whatever the entry point's signature.
        weights: state of the module that the entry point returns (torch), or of the architecture
            (keras).
        weights_sha256: the hash that the file of weights has to have.
        recipe: what pruning did to the channels of the module that the entry point returns (torch).
        architecture: the record of a model, which its weights belong to (keras).
        node_name_mapping: name in the spec to name in the graph (tensorflow) or model (keras).
        init_op_names: graph operations to run once after loading (tensorflow).
        custom_ops: shared libraries to load before the model.
        native: a live module in place of an entry point (torch); it stays as it is. Such a source
            cannot be handed to another process.
    """

    framework: str
    label: str
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    path: Path | None = None
    entrypoint: str | None = None
    entrypoint_kwargs: Mapping[str, Any] = field(default_factory=dict)
    code_root: Path | None = None
    data_files: Mapping[str, Path] = field(default_factory=dict)
    data_root: Path | None = None
    always_pass_data_root: bool = False
    weights: Path | None = None
    weights_sha256: str | None = None
    recipe: Mapping[str, Any] | None = None
    architecture: Mapping[str, Any] | None = None
    node_name_mapping: Mapping[str, str] | None = None
    init_op_names: tuple[str, ...] = ()
    custom_ops: tuple[Path, ...] = ()
    native: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is opened.

    Attributes:
        device: ``cpu``, ``gpu`` or ``gpu:N``.
        threads: threads of one operator; None leaves the framework's default.
    """

    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        parse_device(self.device)


@dataclass(frozen=True)
class LayerOutput:
    """What one layer of a model returned.

    Attributes:
        name: the layer's name in its model.
        kind: its type (``Conv2d``, ``MatMul``).
        array: its output; of several the first.
        scopes: other names under which another model may know it.
    """

    name: str
    kind: str
    array: np.ndarray[Any, Any]
    scopes: tuple[str, ...] = ()


class Model(ABC):
    """A model that is loaded and can be run.

    Attributes:
        inputs: what it takes, in order.
        outputs: what it returns; empty when only a run tells.
        native: the framework's own object (``nn.Module``, ``keras.Model``, ...), or None.
        version: the version of the framework that runs it.
        concurrency: how many calls it can serve at once, from several threads.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    native: Any = None
    version: str = ""
    concurrency: int = 1

    @abstractmethod
    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Compute the outputs of one batch.

        Args:
            arrays: one array an input, of the dtype and shape that the spec says; never written to,
                and never copied where the framework can take a view.
            outputs: the outputs wanted; None means all. An adapter may return more.

        Returns:
            arrays by output name; strings are NumPy unicode arrays.
        """

    def run_into(
        self, arrays: Arrays, outputs: Sequence[str] | None, memory: OutputMemory
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Compute the outputs of one batch, in the caller's memory where the framework can do that.

        Args:
            arrays: as for :meth:`run`.
            outputs: as for :meth:`run`.
            memory: returns arrays to write to, given element type and shape by output name.

        Returns:
            arrays by output name: those of ``memory``, or others.
        """
        return self.run(arrays, outputs)

    def layers(self, arrays: Arrays) -> list[LayerOutput]:
        """Run one batch and return what each layer returned, in order; empty where none can tell.

        Args:
            arrays: as for :meth:`run`.
        """
        return []

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return memory for an input, zeros, that a run does not have to copy.

        Args:
            dtype: the element type, as in a spec; no string.
            shape: its sizes.
        """
        import numpy as np

        from ..specs.dtypes import numpy_dtype

        return np.zeros(shape, numpy_dtype(dtype))

    def close(self) -> None:
        """Release what the model holds outside of Python's memory."""
        return None


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, which is not read into memory as a whole."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weights(source: ModelSource) -> None:
    """Compare the file of weights with the hash that the source gives, if it gives one.

    Raises:
        ModelError: it is another file, or cannot be read.
    """
    if source.weights is None or source.weights_sha256 is None:
        return
    from ..errors import ModelError

    try:
        found = file_sha256(source.weights)
    except OSError as error:
        raise ModelError(f"{source.weights}: cannot be read: {error.strerror}") from error
    if found != source.weights_sha256.lower():
        raise ModelError(
            f"{source.label}: {source.weights} is not the file of weights that belongs to it:"
            f" found the sha256 {found}; expected {source.weights_sha256}",
            hint="the file is damaged, or was changed after it was exported: export it again",
        )


def import_framework(name: str, extra: str) -> ModuleType:
    """Import a framework, or say which extra installs it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != name.split(".")[0]:
            raise
        raise MissingDependencyError(
            f"this needs {name.split('.')[0]}, which is not installed",
            hint=f"pip install 'ingot[{extra}]'",
        ) from error


def parse_device(device: str) -> tuple[str, int]:
    """Split ``cpu``, ``gpu``, ``cuda`` or ``gpu:1`` into kind (``cpu`` or ``gpu``) and index.

    Raises:
        UsageError: it is none of them.
    """
    from ..errors import UsageError

    kind, _, index = device.lower().partition(":")
    kind = "gpu" if kind == "cuda" else kind
    if kind not in ("cpu", "gpu") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise UsageError(f"device: found {device!r}; expected cpu, gpu or gpu:N")
    return kind, int(index or 0)


def warn_no_gpu(device: str, framework: str) -> None:
    """Say that a GPU was asked for and the CPU is used."""
    import logging

    logging.getLogger("ingot").warning(
        "device %s: %s sees no such GPU here; running on the CPU", device, framework
    )


def require_specs(
    source: ModelSource, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Check that declared tensors exist in the model, and fill in what was not declared.

    Args:
        source: what is declared.
        inputs: what the model itself says that it takes.
        outputs: what the model itself says that it returns.

    Raises:
        ModelError: a declared tensor is unknown to the model, or one that it needs is not declared.
    """
    from ..errors import ModelError

    for kind, declared, found in (
        ("input", source.inputs, inputs),
        ("output", source.outputs, outputs),
    ):
        names = [spec.name for spec in found]
        for spec in declared or ():
            if spec.name not in names:
                raise ModelError(
                    f"{source.label}: the spec names the {kind} {spec.name!r}, which the model"
                    f" does not have; it has {_list(names)}"
                )
        if kind == "input" and declared is not None:
            missing = [name for name in names if name not in {spec.name for spec in declared}]
            if missing:
                raise ModelError(
                    f"{source.label}: the model takes the input {missing[0]!r}, which the spec"
                    f" does not name; it names {_list([spec.name for spec in declared])}"
                )
    return (
        tuple(inputs) if source.inputs is None else source.inputs,
        tuple(outputs) if source.outputs is None else source.outputs,
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, a damaged one included."""
    import zipfile

    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged end: "zipfiles that span multiple disks"
        return True


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message that says anything.

    TensorFlow and Keras begin with lines that say where; what went wrong follows.
    """
    text = _OF_TENSORFLOW.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0] == "in user code:":  # a traceback follows
        found = [place for place, line in enumerate(lines) if "Error: " in line]
        lines = lines[found[-1] if found else -1 :]
    elif lines and lines[0] == "Graph execution error:":  # likewise
        found = [place for place, line in enumerate(lines[:-1]) if line.startswith(_OF_TRACEBACK)]
        lines = lines[found[-1] + 1 if found else -1 :]
    while len(lines) > 1 and _NAMES_A_PLACE.search(lines[0]):
        lines = lines[1:]
    return lines[0] if lines else type(error).__name__


_OF_TENSORFLOW = re.compile(
    r"\x1b\[[0-9;]*m|\{\{function_node \S+\}\} *|\s*\[\[\{\{node \S+\}\}\]\]"
    r"|\s*\[Op:[^\]]*\](?: name:[^\n\x1b]*)?"
)
"""Colours, nodes of a graph, and operations: not what went wrong."""
_OF_TRACEBACK = ("Detected at node", 'File "', "<stack traces")
_NAMES_A_PLACE = re.compile(
    r"Exception encountered when calling .*\.$|Error encountered:$|root error\(s\) found\.$"
)


def decode_strings(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array of ``str`` objects, or of UTF-8 ``bytes``, as a NumPy unicode array."""
    import numpy as np

    flat = [item.decode("utf-8") if isinstance(item, bytes) else item for item in array.flat]
    return np.array(flat, dtype=np.str_).reshape(array.shape)
