"""The Keras network of a problem: built, with the weights of its spec, or to start from others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..frameworks.base import LoadOptions, is_zip
from ..frameworks.keras import KerasModel, fresh_names, import_keras, native_model, require_model
from ..frameworks.keras_weights import load_weights, read_arrays, stable_names
from .device import Device
from .networks import named_network, tensors_to_start_from
from .randomness import seed_everything

if TYPE_CHECKING:
    from .inputter import Array
    from .problem import Problem


def build_network(problem: Problem, seed: int) -> Any:
    """Return the Keras network of a problem.

    An entry point, a network of the zoo and an architecture get initial weights that the seed
    decides. A ``.keras`` file brings its own: training goes on from them.

    Raises:
        ModelError: the file cannot be read; the entry point fails, or returns something else.
        MissingDependencyError: Keras or TensorFlow is not installed.
    """
    keras = import_keras()
    # Keras draws the seeds of initializers and of dropout from the generator of Python.
    seed_everything(seed)
    wanted = problem.training.network
    if wanted is None:
        return native_model(problem.source, keras)
    with fresh_names():
        found = named_network(problem, wanted, framework="keras")
    return require_model(found, wanted.name, problem.label, keras)


def load_network(problem: Problem, threads: int | None = None) -> KerasModel:
    """Return the network with the weights of the spec, as its adapter.

    Args:
        problem: names it.
        threads: threads of one operator.
    """
    options = LoadOptions("gpu" if problem.device is Device.GPU else "cpu", threads)
    keras = import_keras(options)
    native = build_network(problem, problem.seed)
    if problem.source.weights is not None:
        load_weights(native, problem.source.weights, problem.label, keras)
    return KerasModel(problem.source, native, keras, options)


def has_random_weights(problem: Problem) -> bool:
    """Whether another seed would give the network other weights."""
    import numpy as np

    first, second = (
        [np.asarray(variable.numpy()) for variable in build_network(problem, seed).weights]
        for seed in (0, 1)
    )
    return len(first) != len(second) or any(map(_differ, first, second))


def _differ(first: Array, second: Array) -> bool:
    return first.shape != second.shape or first.tobytes() != second.tobytes()


def variables_of(network: Any) -> list[tuple[str, Any]]:
    """Return the weights of a network, the statistics of BatchNorm among them, by name."""
    return list(zip(stable_names(network, import_keras()), network.weights, strict=True))


def load_pretrained(
    variables: dict[str, Any], path: Path, skip: tuple[str, ...], label: str
) -> list[str]:
    """Load weights to start from; return the names of the variables that keep their values.

    Args:
        variables: those of the network, by name.
        path: a safetensors file, or a ``.keras`` file, whose variables have the same names.
        skip: parts of names that are not restored.
        label: what messages call the network.

    Raises:
        ModelError: a variable that is not skipped is missing, or has another shape.
        SpecError: a pattern fits nothing.
    """
    state = _arrays(path)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    found = {name: tuple(array.shape) for name, array in state.items()}
    chosen, skipped = tensors_to_start_from(shapes, found, skip, path, label)
    for name in chosen:
        variables[name].assign(state[name])
    return skipped


def _arrays(path: Path) -> dict[str, Array]:
    if not is_zip(path):
        return read_arrays(path)
    keras = import_keras()
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        from ..frameworks.base import first_line

        raise ModelError(f"{path}: Keras cannot load it: {first_line(error)}") from error
    return {name: variable.numpy() for name, variable in variables_of(network)}
