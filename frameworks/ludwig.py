"""Ludwig model directories, run by Ludwig itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..specs.tensors import TensorSpec
from .base import LoadOptions, Model, ModelSource, first_line, import_framework, require_specs

if TYPE_CHECKING:
    import numpy as np

    from .base import Arrays

HYPERPARAMETERS = "model_hyperparameters.json"

_INPUT_DTYPES = {"number": "float32", "numerical": "float32", "binary": "bool"}


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Load a trained Ludwig model.

    Raises:
        ModelError: the folder is no Ludwig model, or Ludwig cannot load it.
        MissingDependencyError: Ludwig is not installed; it has no extra, because it pins much.
    """
    if source.path is None:
        raise ModelError(f"{source.label}: a Ludwig model needs a directory")
    inputs, outputs = read_specs(source.path)
    try:
        import_framework("ludwig", "ludwig")
    except ImportError as error:
        raise ModelError(f"{source.label}: importing Ludwig failed: {error}") from error
    from .embedded.ludwig_entry import load_model

    try:
        predict = load_model(str(source.path))
    except Exception as error:
        raise ModelError(f"{source.label}: Ludwig cannot load it: {first_line(error)}") from error
    return _LudwigModel(source, predict, *require_specs(source, inputs, outputs))


def read_specs(directory: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Read the inputs and outputs of a Ludwig model from its hyperparameter file.

    Every input is one-dimensional: ``(batch_size,)``; numbers are float32, binary features bool,
    and all others strings, as they would stand in a CSV. Each output feature gives its predictions.

    Raises:
        ModelError: the folder has no such file, or it is damaged.
    """
    path = directory / HYPERPARAMETERS
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{directory}: not a Ludwig model directory (no {HYPERPARAMETERS})"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable: {error}") from error
    try:
        inputs = tuple(
            TensorSpec(feature["name"], _INPUT_DTYPES.get(feature["type"], "string"), _BATCH)
            for feature in config["input_features"]
        )
        outputs = tuple(
            TensorSpec(
                f"{feature['name']}_predictions",
                _INPUT_DTYPES.get(feature["type"], "string"),
                _BATCH,
            )
            for feature in config["output_features"]
        )
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path}: found no input_features and output_features: {error}") from error
    return inputs, outputs


_BATCH = ("batch_size",)


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
