"""Keras models taken apart: the record of their architecture, and their variables by name.

A variable's path (``conv2d/kernel``) depends on how the model was put together, and two layers may
share one. So the names are always those of the model that is rebuilt from its record.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from .base import first_line, import_framework

Array = np.ndarray[Any, Any]


def architecture_of(model: Any) -> dict[str, Any]:
    """Return the record of a model, as in ``config.json`` of a ``.keras`` file.

    How it was compiled is left out.

    Raises:
        ValueError, TypeError: Keras cannot write it, or not as JSON.
    """
    import keras
    from keras.src.saving.serialization_lib import ObjectSharingScope

    with ObjectSharingScope():
        record = keras.saving.serialize_keras_object(model)
    plain: dict[str, Any] = json.loads(json.dumps(_not_compiled(record), allow_nan=False))
    return plain


def _not_compiled(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_not_compiled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _not_compiled(item)
        for key, item in value.items()
        if key != "compile_config" or "class_name" not in value
    }


def build(architecture: Mapping[str, Any], keras: Any) -> Any:
    """Build a model from its record in safe mode; its weights are those of a new one.

    Raises:
        Exception: whatever Keras raises; it refuses code, and classes that it does not know.
    """
    from keras.src.saving.serialization_lib import ObjectSharingScope

    # A copy, as Keras may change it.
    record = _not_compiled(dict(architecture))
    with ObjectSharingScope():
        model = keras.saving.deserialize_keras_object(record, safe_mode=True)
    if not isinstance(model, keras.Model):
        raise TypeError(f"the architecture is a {type(model).__name__}; expected a model")
    return model


def names_of(model: Any) -> list[str]:
    """Return a name of each variable in ``model.weights``: its path, and a number where shared."""
    names: list[str] = []
    for variable in model.weights:
        name, number = variable.path, 1
        while name in names:
            number += 1
            name = f"{variable.path}:{number}"
        names.append(name)
    return names


def rebuilt(model: Any, keras: Any) -> Any:
    """Return a model that is built from the record of another one; None where Keras cannot do that.

    It cannot where a class is the user's own, and not registered with Keras.
    """
    try:
        return build(architecture_of(model), keras)
    except Exception as error:
        logging.getLogger("ingot").debug("%s: is not rebuilt: %s", model.name, first_line(error))
        return None


def stable_names(model: Any, keras: Any) -> list[str]:
    """Return the name of each variable in ``model.weights`` that a file of its weights has.

    They are those of the model that is built from its record, so that the same file fits code, a
    ``.keras`` file and a record. A model that cannot be rebuilt has those of its own.
    """
    other = rebuilt(model, keras)
    if other is None or [item.shape for item in other.weights] != [w.shape for w in model.weights]:
        return names_of(model)
    return names_of(other)


def load_weights(model: Any, path: Path, label: str, keras: Any) -> None:
    """Load the variables of a model from a safetensors file, strictly.

    Raises:
        ModelError: the file is damaged, or has other tensors than the model.
    """
    arrays = read_arrays(path)
    variables = dict(zip(stable_names(model, keras), model.weights, strict=True))
    where = f"{label}: weights {path.name} do not fit the architecture"
    for kind, names in (
        ("lacks", [name for name in variables if name not in arrays]),
        ("has the unknown", [name for name in arrays if name not in variables]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{where}: the file {kind} tensor {names[0]!r}{more}")
    for name, variable in variables.items():
        found, expected = _describe(arrays[name]), _describe(variable)
        if found != expected:
            raise ModelError(f"{where}: tensor {name!r} is {found}; expected {expected}")
        variable.assign(arrays[name])
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with constants made from its variables


def _describe(tensor: Any) -> str:
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    return f"{dtype}[{', '.join(map(str, tensor.shape))}]"


def read_arrays(path: Path) -> dict[str, Array]:
    """Read a safetensors file.

    Raises:
        ModelError: it cannot be read.
    """
    import_framework("safetensors", "tensorflow")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: dict[str, Array] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {error}") from error
    return arrays


def read_variables(model: Any, rebuilt: Any, label: str, keras: Any) -> dict[str, Array]:
    """Return the values of a model's variables, by their names in the rebuilt model.

    Args:
        model: the model.
        rebuilt: what :func:`build` made of its record.
        label: what the user calls the model.
        keras: the framework.

    Raises:
        ModelError: its record leaves out a part of its state.
    """
    ours, theirs = model.weights, rebuilt.weights
    found, expected = [_describe(item) for item in theirs], [_describe(item) for item in ours]
    if found != expected:
        raise ModelError(
            f"{label}: Keras does not rebuild the model from its own record: found"
            f" {len(found)} variables where it has {len(expected)}, or others",
            hint="a .keras file holds such a model: ingot package",
        )
    for layer in layers_of(model):
        with tempfile.TemporaryDirectory(prefix="ingot-assets-") as folder:
            if hasattr(layer, "save_assets"):
                layer.save_assets(folder)
            if any(Path(folder).iterdir()):
                raise ModelError(
                    f"{label}: the layer {layer.name!r} holds more than numbers (a vocabulary that"
                    " it was adapted to), which safetensors cannot hold",
                    hint="make the layer with its vocabulary, or package the .keras file",
                )
    values = (np.array(keras.ops.convert_to_numpy(item), order="C") for item in ours)
    return dict(sorted(zip(names_of(rebuilt), values, strict=True)))


def layers_of(model: Any) -> Iterator[Any]:
    """Yield the layers of a model, and those inside of them."""
    for layer in getattr(model, "layers", ()):
        yield layer
        yield from layers_of(layer)
