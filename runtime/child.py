"""Runs a model in a fresh process: a damaged file may crash its runtime, but not Ingot.

The parent calls :func:`run_source` or :func:`check_package`; ``python -m ingot.runtime.child`` is
the other end. A request is JSON on standard input; the answer is JSON in a file, so that whatever
the model prints cannot be mistaken for it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IngotError, ModelError
from ..frameworks import ModelSource, open_model
from ..frameworks.signatures import Signature, read_signature
from ..specs import TensorSpec
from .exchange import pack_error, pack_source, unpack_error, unpack_source, unpack_specs
from .golden import Difference, Golden, compare, dump_npz, read_npz, restore_dtype

Array = np.ndarray[Any, Any]

_TAIL = 4000


@dataclass(frozen=True)
class SourceRun:
    """What running a model's source told.

    Attributes:
        inputs: the inputs, declared or read off the model.
        outputs: the outputs, likewise.
        arrays: the outputs computed; empty when no inputs were given.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arrays: Mapping[str, Array]


def run_source(source: ModelSource, inputs: Mapping[str, Array] | None) -> SourceRun:
    """Load a model from its source in a fresh process, and run it on ``inputs`` when given.

    Raises:
        IngotError: whatever loading or running raised there; ModelError when the process died.
    """
    with tempfile.TemporaryDirectory(prefix="ingot-run-") as folder:
        request: dict[str, Any] = {"action": "source", "source": pack_source(source)}
        if inputs is not None:
            request["inputs"] = str(Path(folder, "inputs.npz"))
            request["outputs"] = str(Path(folder, "outputs.npz"))
            Path(request["inputs"]).write_bytes(dump_npz(inputs))
        answer = _ask(request, folder, source.label)
        outputs = unpack_specs(answer["outputs"])
        arrays = {}
        if inputs is not None:
            read = read_npz(Path(request["outputs"]), source.label)
            arrays = {name: restore_dtype(array, name, outputs) for name, array in read.items()}
        return SourceRun(unpack_specs(answer["inputs"]), outputs, arrays)


def describe_source(source: ModelSource) -> Signature:
    """Read what a model takes and returns in a fresh process, as far as it says without a run.

    Raises:
        IngotError: whatever loading raised there; ModelError when the process died.
    """
    with tempfile.TemporaryDirectory(prefix="ingot-read-") as folder:
        request = {"action": "signature", "source": pack_source(source)}
        answer = _ask(request, folder, source.label)
        return Signature(
            unpack_specs(answer["inputs"]), unpack_specs(answer["outputs"]), answer["mapping"]
        )


def check_package(
    path: Path,
    golden: Golden | None,
    *,
    label: str,
    ignore_lock: bool = False,
) -> list[Difference]:
    """Load a finished package in a fresh process, with its code trusted, and run golden data on it.

    Args:
        path: the package.
        golden: the data; None checks only that it loads.
        label: what to call the package in messages.
        ignore_lock: run even if locked requirements differ from what is installed.

    Returns:
        one entry for each output that differs.

    Raises:
        IngotError: whatever loading or running raised there; ModelError when the process died.
    """
    with tempfile.TemporaryDirectory(prefix="ingot-check-") as folder:
        request: dict[str, Any] = {
            "action": "package",
            "path": str(path),
            "label": label,
            "ignore_lock": ignore_lock,
        }
        if golden is not None:
            file = Path(folder, "golden.npz")
            file.write_bytes(golden.to_npz())
            request |= {"golden": str(file), "rtol": golden.rtol, "atol": golden.atol}
        answer = _ask(request, folder, label)
        return [Difference(**entry) for entry in answer["differences"]]


def onnx_external_data(path: Path) -> list[str]:
    """Return the files beside an ONNX file that hold its weights, read in a fresh process.

    Parsing the file takes its size in memory, and more.
    """
    with tempfile.TemporaryDirectory(prefix="ingot-onnx-") as folder:
        answer = _ask({"action": "external_data", "path": str(path)}, folder, str(path))
        return list(answer["files"])


def call_in_child(
    function: str,
    request: Mapping[str, Any],
    label: str,
    arrays: Mapping[str, Array] | None = None,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Call a function of Ingot's in a fresh process.

    Args:
        function: ``package.module:name`` below ``ingot``; it is called with the request and the
            arrays, and returns the same: JSON values, and arrays by name.
        request: JSON values; a source travels as :func:`exchange.pack_source` makes it.
        label: what the work is about, for messages.
        arrays: arrays by name.

    Raises:
        IngotError: whatever the function raised; ModelError when the process died.
    """
    with tempfile.TemporaryDirectory(prefix="ingot-call-") as folder:
        files = {"arrays": Path(folder, "in.npz"), "results": Path(folder, "out.npz")}
        files["arrays"].write_bytes(dump_npz(arrays or {}))
        named = {name: str(path) for name, path in files.items()}
        answer = _ask(
            {"action": "call", "function": function, "request": dict(request), **named},
            folder,
            label,
        )
        return answer["returned"], read_npz(files["results"], label)


def _ask(request: Mapping[str, Any], folder: str, label: str) -> dict[str, Any]:
    answer_file = Path(folder, "answer.json")
    # What a process that dies has left in its temporary folder goes with ours.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": folder}
    process = subprocess.run(
        # -P: a torch.py in the user's current folder must not be taken for the framework.
        [sys.executable, "-P", "-m", "ingot.runtime.child", str(answer_file)],
        input=json.dumps(request).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        check=False,
    )
    printed = process.stdout.decode(errors="replace")
    logger = logging.getLogger("ingot")
    if printed.strip():
        logger.debug("%s: its process printed:\n%s", label, printed[-_TAIL:].rstrip())
    if not answer_file.exists():
        raise ModelError(f"{label}: the process that ran the model {_how_it_ended(process)}")
    answer: dict[str, Any] = json.loads(answer_file.read_text(encoding="utf-8"))
    for message in answer.get("warnings", []):
        logger.warning("%s", message)
    if "error" in answer:
        raise unpack_error(answer["error"])
    return answer


def _how_it_ended(process: subprocess.CompletedProcess[bytes]) -> str:
    lines = process.stdout.decode(errors="replace").strip().splitlines()
    last = f"; its last line: {lines[-1]}" if lines else ""
    if process.returncode < 0:
        try:
            name = signal.Signals(-process.returncode).name
        except ValueError:
            name = f"signal {-process.returncode}"
        return f"was ended by {name}{last}"
    return f"ended with status {process.returncode} and no answer{last}"


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _run_source(request: Mapping[str, Any]) -> dict[str, Any]:
    from .session import LoadedModel

    source = unpack_source(request["source"])
    with LoadedModel(
        source.label, source.framework, source.label, open_model(source), check=True
    ) as model:
        if "inputs" in request:
            arrays = read_npz(Path(request["inputs"]), "inputs")
            arrays = {
                name: restore_dtype(array, name, model.inputs) for name, array in arrays.items()
            }
            Path(request["outputs"]).write_bytes(dump_npz(model.infer(arrays)))
        return {
            "inputs": [spec.to_dict() for spec in model.inputs],
            "outputs": [spec.to_dict() for spec in model.outputs],
        }


def _read_signature(request: Mapping[str, Any]) -> dict[str, Any]:
    found = read_signature(unpack_source(request["source"]))
    return {
        "inputs": [spec.to_dict() for spec in found.inputs],
        "outputs": [spec.to_dict() for spec in found.outputs],
        "mapping": found.node_name_mapping,
    }


def _check_package(request: Mapping[str, Any]) -> dict[str, Any]:
    from .loading import load

    try:
        model = load(request["path"], trust_code=True, ignore_lock=request["ignore_lock"])
        with model:
            if "golden" not in request:
                return {"differences": []}
            golden = Golden.from_arrays(
                read_npz(Path(request["golden"]), "golden data"),
                model.inputs,
                model.outputs,
                {"rtol": request["rtol"], "atol": request["atol"]},
            )
            actual = model.infer(golden.inputs)
    except IngotError as error:
        error.message = error.message.replace(request["path"], request["label"])
        raise
    if golden.outputs is None:
        return {"differences": []}
    differences = compare(golden.outputs, actual, golden.rtol, golden.atol)
    return {"differences": [asdict(difference) for difference in differences]}


def _external_data(request: Mapping[str, Any]) -> dict[str, Any]:
    from ..frameworks.onnx import external_data_files

    return {"files": external_data_files(Path(request["path"]))}


def _call(request: Mapping[str, Any]) -> dict[str, Any]:
    module, _, name = request["function"].partition(":")
    function = getattr(import_module(f"ingot.{module}"), name)
    returned, arrays = function(request["request"], read_npz(Path(request["arrays"]), "inputs"))
    Path(request["results"]).write_bytes(dump_npz(arrays))
    return {"returned": returned}


_ACTIONS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "source": _run_source,
    "package": _check_package,
    "signature": _read_signature,
    "external_data": _external_data,
    "call": _call,
}


def main() -> None:
    """Serve one request: standard input to the file named by the first argument."""
    request = json.loads(sys.stdin.buffer.read())
    collector = _Collector()
    logger = logging.getLogger("ingot")
    logger.addHandler(collector)
    logger.propagate = False
    answer: dict[str, Any]
    try:
        answer = _ACTIONS[request["action"]](request)
    except IngotError as error:
        answer = {"error": pack_error(error)}
    answer["warnings"] = collector.messages
    # Once this is written the parent ignores how the process ends: some frameworks abort while they
    # are torn down.
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
