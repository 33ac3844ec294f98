"""Keras 3 models: ``.keras`` files and architectures, loaded in safe mode, and entry points."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from ..specs.dtypes import canonical_dtype
from ..specs.tensors import Dimension, TensorSpec
from .base import (
    LayerOutput,
    LoadOptions,
    Model,
    ModelSource,
    check_weights,
    decode_strings,
    first_line,
    import_framework,
    is_zip,
    require_specs,
)
from .custom_ops import load_once
from .keras_weights import build, load_weights
from .tensorflow import import_tensorflow, no_keras_home, tensorflow_device

if TYPE_CHECKING:
    from .base import Arrays


def import_keras(options: LoadOptions | None = None) -> Any:
    """Import Keras on TensorFlow, unless the user chose another backend.

    Raises:
        MissingDependencyError: it, or TensorFlow, is not installed.
    """
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        import_tensorflow(options)
    with no_keras_home():
        return import_framework("keras", "tensorflow")


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Load a ``.keras`` file or an architecture, or call an entry point; then load its weights.

    Code inside of a file (Lambda layers) is refused.

    Raises:
        ModelError: the file is something else, holds code or unknown classes, or lacks a tensor of
            the spec; the entry point fails; or the weights do not fit the model.
        MissingDependencyError: Keras is not installed.
    """
    keras = _imported(source, options)
    native = native_model(source, keras)
    if source.weights is not None:
        load_weights(native, source.weights, source.label, keras)
    return KerasModel(source, native, keras, options)


def _imported(source: ModelSource, options: LoadOptions) -> Any:
    """Check the files of a source, and import Keras for it."""
    if source.path is None and source.architecture is None and source.entrypoint is None:
        raise ModelError(f"{source.label}: a Keras model needs a file")
    if source.path is not None and not is_zip(source.path):
        raise ModelError(
            f"{source.label}: not a .keras file (it is no zip archive, or truncated)",
            hint="a file of Keras 2 (.h5) is converted by loading it and model.save('model.keras')",
        )
    check_weights(source)
    keras = import_keras(options)
    if source.custom_ops:
        load_once(
            source.custom_ops, "tensorflow", import_tensorflow().load_op_library, source.label
        )
    return keras


def native_model(source: ModelSource, keras: Any) -> Any:
    """Return the ``keras.Model`` of a source; ``source.weights`` are not loaded.

    Raises:
        ModelError: it cannot be loaded, or the entry point fails or returns something else.
    """
    if source.entrypoint is not None:
        from .python import call_entrypoint, code_folder

        with fresh_names():
            native = call_entrypoint(source, code_folder(source))
        return require_model(native, source.entrypoint, source.label, keras)
    try:
        if source.architecture is None:
            native = keras.saving.load_model(source.path, compile=False, safe_mode=True)
        else:
            native = build(source.architecture, keras)
    except Exception as error:
        reason = first_line(error)
        hint = None
        if "Lambda" in str(error) or "unsafe" in str(error):
            hint = "a Lambda layer is code, which safe mode refuses; write it as a layer class"
        raise ModelError(
            f"{source.label}: Keras {keras.__version__} cannot load it: {reason}", hint=hint
        ) from error
    return native


def require_model(native: Any, name: str, label: str, keras: Any) -> Any:
    """Return what an entry point returned, when it is a Keras model.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(native, keras.Model):
        raise ModelError(
            f"{label}: {name!r} returned a {type(native).__name__}; expected a keras.Model"
        )
    return native


@contextmanager
def fresh_names() -> Iterator[None]:
    """Number layers that are made within the context from the start, as in a new process.

    Keras counts them in the process (``dense``, ``dense_1``), and variables are named after them:
    the weights of a model that is built twice would else have other names.
    """
    from keras.src.backend.common import global_state

    counts = global_state.get_global_attribute("object_name_uids")
    global_state.set_global_attribute("object_name_uids", defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", counts)


class KerasModel(Model):
    """A loaded Keras model, called with its inputs in the model's own structure.

    Args:
        source: the declared specs and ``node_name_mapping``; a missing one is read off the model,
            with the first dimension called ``batch_size``, as Neuropod does.
        native: the ``keras.Model``.

    Attributes:
        is_on_gpu: whether TensorFlow runs it on a GPU.
    """

    def __init__(self, source: ModelSource, native: Any, keras: Any, options: LoadOptions) -> None:
        self.native = native
        self.is_on_gpu = False
        self.version = keras.__version__
        self._label = source.label
        self._keras = keras
        self._structure = _structure(native, "input", source.label)
        flat = keras.tree.flatten(self._structure)
        mapping = {
            node.removesuffix(":0"): name for name, node in (source.node_name_mapping or {}).items()
        }
        returned = _structure(native, "output", source.label)
        if isinstance(native, keras.Sequential):
            # Keras names its two tensors anew whenever it loads one.
            self._feed_names = [_only_name(source.inputs, "input")]
            self._output_names = [_only_name(source.outputs, native.layers[-1].name)]
        else:
            self._feed_names = [mapping.get(value.name, value.name) for value in flat]
            named = output_names(native, returned)
            self._output_names = [mapping.get(name, name) for name in named]
        inputs = [_spec(name, value) for name, value in zip(self._feed_names, flat, strict=True)]
        outputs = [
            _spec(name, value)
            for name, value in zip(self._output_names, keras.tree.flatten(returned), strict=True)
        ]
        self.inputs, self.outputs = require_specs(source, inputs, outputs)
        self._call = self._compile(options)

    def _compile(self, options: LoadOptions) -> Any:
        native = self.native
        if self._keras.backend.backend() != "tensorflow":
            return lambda feeds: native(feeds, training=False)
        tensorflow = import_tensorflow()
        device = tensorflow_device(tensorflow, options.device)
        self.is_on_gpu = device.startswith("/GPU")

        def call(feeds: Any) -> Any:
            with tensorflow.device(device):
                return native(feeds, training=False)

        return tensorflow.function(call, reduce_retracing=True)

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        # A copy: a variable that is assigned from a view of the caller's array would keep it.
        convert = self._keras.ops.convert_to_tensor
        try:
            values = self.call_tensors(
                {name: convert(arrays[name]) for name in self._feed_names}, self._call
            )
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_line(error)}") from error
        wanted = self._output_names if outputs is None else outputs
        return {name: self._array(values[name]) for name in wanted}

    def layers(self, arrays: Arrays) -> list[LayerOutput]:
        from .layers import keras_layers

        convert = self._keras.ops.convert_to_tensor
        tensors = [convert(arrays[name]) for name in self._feed_names]
        return keras_layers(self.native, self._keras, tensors)

    def call_tensors(self, tensors: Mapping[str, Any], call: Any = None) -> dict[str, Any]:
        """Call the model with backend tensors by input name; return them by output name.

        Args:
            tensors: one tensor an input.
            call: called instead of the model, with the inputs in the model's own structure.
        """
        tree = self._keras.tree
        feeds = tree.pack_sequence_as(self._structure, [tensors[name] for name in self._feed_names])
        returned = self.native(feeds, training=False) if call is None else call(feeds)
        return dict(zip(self._output_names, tree.flatten(returned), strict=True))

    def _array(self, value: Any) -> np.ndarray[Any, Any]:
        array = np.asarray(self._keras.ops.convert_to_numpy(value))
        return decode_strings(array) if array.dtype.kind in "OS" else array


def _only_name(declared: Sequence[TensorSpec] | None, default: str) -> str:
    return declared[0].name if declared is not None and len(declared) == 1 else default


def _structure(model: Any, kind: str, label: str) -> Any:
    """Return the symbolic inputs or outputs of a model, in the structure in which it takes them.

    Raises:
        ModelError: it has none yet: a subclassed model, or one that was never built.
    """
    tensors = getattr(model, f"{kind}s", None)
    if not tensors:
        raise ModelError(
            f"{label}: the Keras model {model.name!r} has no defined {kind}s",
            hint="make it a functional model: keras.Model(x, layer(x)) with x = keras.Input(...)",
        )
    try:
        return getattr(model, kind)
    except (AttributeError, ValueError):  # a Sequential model, which has exactly one
        return tensors[0]


def output_names(model: Any, structure: Any) -> list[str]:
    """Return the name of each output, in the order in which the model's structure flattens."""
    if isinstance(structure, Mapping):
        return [str(name) for name in sorted(structure)]
    names = getattr(model, "output_names", None)
    return [str(name) for name in names] if names else [structure.name]


def _spec(name: str, value: Any) -> TensorSpec:
    shape: list[Dimension] = list(value.shape)
    if shape and shape[0] is None:
        shape[0] = "batch_size"
    return TensorSpec(name, canonical_dtype(value.dtype), tuple(shape))
