"""Ludwig model directories, run by Ludwig itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError, ModelError
from ..specs.tensors import TensorSpec
from .base import LoadOptions, Model, ModelSource, first_line, require_specs

if TYPE_CHECKING:
    import numpy as np

    from .base import Arrays

HYPERPARAMETERS = "model_hyperparameters.json"
_METADATA = "training_set_metadata.json"

_BATCH = ("batch_size",)
_NUMBERS = ("number", "numerical")
_VECTORS = ("vector", "timeseries")


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Load a trained Ludwig model.

    Raises:
        ModelError: the folder is no Ludwig model, or Ludwig cannot load it.
        MissingDependencyError: Ludwig is not installed.
    """
    if source.path is None:
        raise ModelError(f"{source.label}: a Ludwig model needs a directory")
    inputs, outputs = read_specs(source.path)
    require_ludwig(source.label)
    from .embedded.ludwig_entry import load_model

    try:
        predict = load_model(str(source.path))
    except Exception as error:
        raise ModelError(f"{source.label}: Ludwig cannot load it: {first_line(error)}") from error
    # A spec may name what else Ludwig returns (probabilities, say); only a run tells all of it.
    found = outputs if source.outputs is None else source.outputs
    return _LudwigModel(source, predict, *require_specs(source, inputs, found))


def require_ludwig(label: str) -> None:
    """Check that Ludwig is installed and can be imported.

    Raises:
        MissingDependencyError: it is not. There is no extra for it, because it pins much.
        ModelError: importing it fails.
    """
    try:
        import_module("ludwig")
    except ModuleNotFoundError as error:
        if error.name != "ludwig":
            raise ModelError(f"{label}: importing Ludwig failed: {error}") from error
        raise MissingDependencyError(
            f"{label}: this needs ludwig, which is not installed",
            hint="pip install ludwig (in an environment of its own: it pins much)",
        ) from error
    except Exception as error:
        raise ModelError(f"{label}: importing Ludwig failed: {first_line(error)}") from error


def read_specs(directory: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Read the inputs and outputs of a Ludwig model from the files that it wrote.

    Each column of the data set that a feature reads is an input of that name and of shape
    ``(batch_size,)``: numbers are float32, binary features bool (or strings, where the column held
    strings such as ``yes``), and all others strings, as they would stand in a CSV. Each output
    feature gives its predictions, likewise; those of a vector or a time series are float32
    ``(batch_size, any)``, and those of several labels or tokens one string, joined by spaces.

    Raises:
        ModelError: the folder has no such files, or they are damaged.
    """
    path = directory / HYPERPARAMETERS
    config = _read_json(path)
    if config is None:
        raise ModelError(f"{directory}: not a Ludwig model directory (no {HYPERPARAMETERS})")
    metadata = _read_json(directory / _METADATA) or {}
    inputs: dict[str, TensorSpec] = {}
    outputs = []
    try:
        for feature in config["input_features"]:
            # Several features may read one column, each in its own way.
            column = feature.get("column") or feature["name"]
            spec = TensorSpec(column, _dtype(feature, metadata), _BATCH)
            if inputs.setdefault(column, spec) != spec:
                inputs[column] = TensorSpec(column, "string", _BATCH)
        for feature in config["output_features"]:
            name = f"{feature['name']}_predictions"
            if feature["type"] in _VECTORS:
                outputs.append(TensorSpec(name, "float32", (*_BATCH, None)))
            else:
                outputs.append(TensorSpec(name, _dtype(feature, metadata), _BATCH))
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: expected lists input_features and output_features with name and type of"
            f" each: {type(error).__name__}: {error}"
        ) from error
    return tuple(inputs.values()), tuple(outputs)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable: {error}") from error


def _dtype(feature: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    kind = feature["type"]
    if kind in _NUMBERS:
        return "float32"
    if kind == "binary":
        return "string" if metadata.get(feature["name"], {}).get("bool2str") else "bool"
    return "string"


class _LudwigModel(Model):
    def __init__(
        self,
        source: ModelSource,
        predict: Callable[..., dict[str, Any]],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        import ludwig

        self.inputs, self.outputs = inputs, outputs
        self.native = predict
        self.version = ludwig.__version__
        self._label = source.label

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        try:
            predictions = self.native(**arrays)
        except Exception as error:
            raise ModelError(f"{self._label}: the model failed: {first_line(error)}") from error
        wanted = [spec.name for spec in self.outputs] if outputs is None else outputs
        return {name: predictions[name] for name in wanted if name in predictions}
