"""TensorFlow graphs (GraphDef, run through a session) and SavedModels (run through a signature)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from ..specs.dtypes import canonical_dtype
from ..specs.tensors import TensorSpec
from .base import (
    LoadOptions,
    Model,
    ModelSource,
    decode_strings,
    first_line,
    import_framework,
    parse_device,
    require_specs,
    warn_no_gpu,
)
from .custom_ops import load_once

if TYPE_CHECKING:
    from .base import Arrays

SERVING_SIGNATURE = "serving_default"


def import_tensorflow(options: LoadOptions | None = None) -> Any:
    """Import TensorFlow quietly, and set its number of threads where it still can be set.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" in sys.modules:
        tensorflow = sys.modules["tensorflow"]
    else:
        with _held_back_stderr(), no_keras_home():
            tensorflow = import_framework("tensorflow", "tensorflow")
    if options is not None and options.threads is not None:
        try:
            tensorflow.config.threading.set_intra_op_parallelism_threads(options.threads)
            tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError:
            import logging

            logging.getLogger("ingot").warning(
                "threads: TensorFlow has started already and keeps its number of threads"
            )
    return tensorflow


@contextmanager
def no_keras_home() -> Iterator[None]:
    """Keep Keras, which TensorFlow imports, from writing a configuration file into the user's home.

    It does so when it is imported and finds none. A file that is there is read as ever.
    """
    saved = os.environ.get("KERAS_HOME")
    home = Path(saved) if saved else Path.home() / ".keras"
    if (home / "keras.json").exists():
        yield
        return
    os.environ["KERAS_HOME"] = os.path.join(os.devnull, "keras")
    try:
        yield
    finally:
        if saved is None:
            del os.environ["KERAS_HOME"]
        else:
            os.environ["KERAS_HOME"] = saved


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Hold back what is written to stderr; let it through only if an exception is raised.

    TensorFlow's libraries print about oneDNN while they are imported, whatever the log level.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Load a GraphDef file, or a SavedModel folder.

    Raises:
        ModelError: it cannot be read, or lacks a node or a tensor of the spec.
        MissingDependencyError: TensorFlow is not installed.
    """
    if source.path is None:
        raise ModelError(f"{source.label}: a TensorFlow model needs a graph or a SavedModel")
    tensorflow = import_tensorflow(options)
    load_once(source.custom_ops, "tensorflow", tensorflow.load_op_library, source.label)
    device = tensorflow_device(tensorflow, options.device)
    if source.path.is_dir():
        return _SavedModel(source, tensorflow, device)
    return GraphModel(source, tensorflow, device, options.threads)


def tensorflow_device(tensorflow: Any, device: str) -> str:
    """Return TensorFlow's name of the device; the CPU, with a warning, without such a GPU."""
    kind, index = parse_device(device)
    if kind == "gpu":
        if index < len(tensorflow.config.list_physical_devices("GPU")):
            return f"/GPU:{index}"
        warn_no_gpu(device, "TensorFlow")
    return "/CPU:0"


class GraphModel(Model):
    """A GraphDef in a session of its own; ``make_callable`` is the fastest way to call one.

    Attributes:
        nodes: the graph's tensor of each input and output, by name.
        session: runs the graph; its variables are initialised.
    """

    def __init__(
        self, source: ModelSource, tensorflow: Any, device: str, threads: int | None
    ) -> None:
        if source.inputs is None or source.outputs is None or source.node_name_mapping is None:
            raise ModelError(
                f"{source.label}: a GraphDef needs inputs, outputs and node_name_mapping"
            )
        self.inputs, self.outputs = source.inputs, source.outputs
        self.version = tensorflow.__version__
        self._label = source.label
        v1 = tensorflow.compat.v1
        graph = tensorflow.Graph()
        graph_def = read_graph_def(source.path, source.label, tensorflow)
        try:
            with graph.as_default(), graph.device(device):
                v1.import_graph_def(graph_def, name="")
        except Exception as error:
            raise ModelError(
                f"{source.label}: TensorFlow {self.version} cannot import the graph:"
                f" {first_line(error)}"
            ) from error
        self.native = graph
        self.nodes = {
            spec.name: _node(graph, source, spec.name) for spec in (*self.inputs, *self.outputs)
        }
        config = v1.ConfigProto(allow_soft_placement=True)
        if threads is not None:
            config.intra_op_parallelism_threads = threads
            config.inter_op_parallelism_threads = 1
        self.session = v1.Session(graph=graph, config=config)
        try:
            for name in source.init_op_names:
                self.session.run(graph.get_operation_by_name(name.removesuffix(":0")))
        except Exception as error:
            raise ModelError(
                f"{source.label}: the init operation {name!r} failed: {first_line(error)}"
            ) from error
        self._callables: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        fed = tuple(arrays)
        wanted = tuple(spec.name for spec in self.outputs) if outputs is None else tuple(outputs)
        try:
            call = self._callables.get((fed, wanted))
            if call is None:
                call = self.session.make_callable(
                    [self.nodes[name] for name in wanted], [self.nodes[name] for name in fed]
                )
                self._callables[fed, wanted] = call
            values = call(*arrays.values())
            return {
                name: _unicode(np.asarray(value))
                for name, value in zip(wanted, values, strict=True)
            }
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_line(error)}") from error

    def frozen_graph_def(self) -> Any:
        """Return the graph with its variables as constants, cut down to what the outputs need."""
        operations = sorted({self.nodes[spec.name].op.name for spec in self.outputs})
        tensorflow = import_tensorflow()
        return tensorflow.compat.v1.graph_util.convert_variables_to_constants(
            self.session, self.native.as_graph_def(), operations
        )

    def close(self) -> None:
        self.session.close()


class _SavedModel(Model):
    def __init__(self, source: ModelSource, tensorflow: Any, device: str) -> None:
        self.version = tensorflow.__version__
        self._label = source.label
        self._tensorflow = tensorflow
        self._device = device
        try:
            loaded = tensorflow.saved_model.load(str(source.path), tags=["serve"])
        except Exception as error:
            raise ModelError(
                f"{source.label}: TensorFlow cannot load the SavedModel: {first_line(error)}"
            ) from error
        signatures = getattr(loaded, "signatures", {})
        if SERVING_SIGNATURE not in signatures:
            found = ", ".join(sorted(signatures)) or "none"
            raise ModelError(
                f"{source.label}: the SavedModel has no signature {SERVING_SIGNATURE!r};"
                f" it has {found}"
            )
        self.native = loaded
        self._signature = signatures[SERVING_SIGNATURE]
        takes = self._signature.structured_input_signature[1]
        returns = self._signature.structured_outputs
        self.inputs, self.outputs = require_specs(source, _specs(takes), _specs(returns))
        self._dtypes = {name: value.dtype for name, value in takes.items()}

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        # A copy: a variable that is assigned from a view of the caller's array would keep it.
        convert = self._tensorflow.convert_to_tensor
        try:
            with self._tensorflow.device(self._device):
                feeds = {name: convert(array, self._dtypes[name]) for name, array in arrays.items()}
                values: Mapping[str, Any] = self._signature(**feeds)
            wanted = [spec.name for spec in self.outputs] if outputs is None else outputs
            return {name: _unicode(values[name].numpy()) for name in wanted}
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_line(error)}") from error


def read_graph_def(path: Path | None, label: str, tensorflow: Any) -> Any:
    """Read a binary GraphDef.

    Raises:
        ModelError: the file is no GraphDef.
    """
    graph_def = tensorflow.compat.v1.GraphDef()
    try:
        with open(str(path), "rb") as file:
            graph_def.ParseFromString(file.read())
    except OSError:
        raise
    except Exception as error:
        raise ModelError(f"{label}: not a binary GraphDef: {first_line(error)}") from error
    if not graph_def.node:
        raise ModelError(f"{label}: not a GraphDef, or one without any node")
    return graph_def


def _node(graph: Any, source: ModelSource, name: str) -> Any:
    mapping = source.node_name_mapping or {}
    if name not in mapping:
        raise ModelError(
            f"{source.label}: node_name_mapping has no entry for {name!r};"
            f" it has {', '.join(sorted(mapping)) or 'none'}"
        )
    node = mapping[name] if ":" in mapping[name] else f"{mapping[name]}:0"
    try:
        return graph.get_tensor_by_name(node)
    except (KeyError, ValueError) as error:
        from difflib import get_close_matches

        names = [f"{operation.name}:0" for operation in graph.get_operations()]
        near = get_close_matches(node, names, n=1, cutoff=0.4)
        raise ModelError(
            f"{source.label}: node_name_mapping: {name!r} is {node!r}, which is not in the graph",
            hint=f"did you mean {near[0]!r}?" if near else None,
        ) from error


def _specs(tensors: Mapping[str, Any]) -> list[TensorSpec]:
    """Tensor specs of a signature by name: TensorFlow's order differs from process to process."""
    return [
        TensorSpec(
            name,
            canonical_dtype(tensor.dtype.name),
            None if tensor.shape.rank is None else tuple(tensor.shape.as_list()),
        )
        for name, tensor in sorted(tensors.items())
    ]


def _unicode(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return decode_strings(array) if array.dtype.kind in "OS" else array
