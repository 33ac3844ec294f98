"""The network of a problem: built, with the weights of its spec, or with those to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, SpecError, UsageError
from ..frameworks.base import LoadOptions, import_framework
from ..frameworks.python import call_entrypoint
from ..specs.declare import Component
from .device import Device
from .named import require_matches
from .trainers import TRAINERS

if TYPE_CHECKING:
    from .problem import Problem


def build_network(problem: Problem, seed: int) -> Any:
    """Return a fresh network of PyTorch or Keras, with initial weights that the seed decides.

    Raises:
        UsageError: the spec is of another framework.
        ModelError: the entry point fails, or returns no module.
    """
    framework = problem.spec.model.framework
    if framework == "keras":
        from . import keras_networks

        return keras_networks.build_network(problem, seed)
    if framework != "torch":
        raise UsageError(
            f"{problem.label}: model.framework is {framework!r}; only {' and '.join(TRAINERS)} can"
            " be trained"
        )
    torch = import_framework("torch", "torch")
    torch.manual_seed(seed)
    wanted = problem.training.network
    if wanted is None:
        network = call_entrypoint(problem.source, problem.components.code)
        name = problem.source.entrypoint
    else:
        network, name = named_network(problem, wanted), wanted.name
    if not isinstance(network, torch.nn.Module):
        raise ModelError(
            f"{problem.label}: {name!r} returned a {type(network).__name__}; expected a"
            " torch.nn.Module"
        )
    return network


def named_network(problem: Problem, wanted: Component, framework: str = "torch") -> Any:
    """Return what ``training.network`` names: an entry point, or a network of the zoo.

    Raises:
        SpecError: the data set is missing.
        UsageError: the zoo has no such network.
    """
    components = problem.components
    if wanted.is_entrypoint:
        function = components.code.callable(wanted.name, "training.network")
        return components.call(function, wanted.kwargs, "training.network", wanted.name)
    from ..zoo import get_model_by_name

    kwargs = dict(wanted.kwargs)
    data = kwargs.pop("dataset_name", kwargs.pop("dataset", None))
    if not isinstance(data, str):
        raise SpecError(
            f"{problem.label}: training.network {wanted.name!r}: the key 'dataset' is missing;"
            " expected the data set that it is for"
        )
    return get_model_by_name(wanted.name, data, framework=framework, **kwargs)


def load_network(problem: Problem, threads: int | None = None) -> Any:
    """Return the network with the weights of the spec, on the device and in eval mode.

    Of another framework than PyTorch, a callable that answers in kind.

    Args:
        problem: names it.
        threads: threads of one operator of another framework.
    """
    from ..frameworks import open_model
    from .evaluation import CallableModel

    if problem.spec.model.framework == "keras":
        from . import keras_networks

        return CallableModel(Adapted(keras_networks.load_network(problem, threads)), problem.label)
    if problem.spec.model.framework != "torch":
        options = LoadOptions("gpu" if problem.device is Device.GPU else "cpu", threads)
        return CallableModel(Adapted(open_model(problem.source, options)), problem.label)
    from ..frameworks.pytorch import load_weights
    from .torch_forward_pass import torch_device_of

    network = problem.build_network()
    if problem.source.weights is not None:
        load_weights(network, problem.source.weights, problem.label)
    return network.to(torch_device_of(problem.device)).eval()


def callable_network(network: Any, problem: Problem) -> Any:
    """Return a network of Keras as what evaluations call."""
    from ..frameworks.base import ModelSource
    from ..frameworks.keras import KerasModel, import_keras
    from .evaluation import CallableModel

    options = LoadOptions("gpu" if problem.device is Device.GPU else "cpu")
    model = KerasModel(ModelSource("keras", network.name), network, import_keras(), options)
    return CallableModel(Adapted(model), network.name)


class Adapted:
    """An adapter's model with the method of a loaded one."""

    def __init__(self, model: Any) -> None:
        self.inputs, self.outputs = model.inputs, model.outputs
        self.infer = model.run


def has_random_weights(problem: Problem) -> bool:
    """Whether the weights of a spec are initial ones, which another seed would change.

    That is so where ``model.weights`` is missing and the entry point reads none by itself.
    """
    if problem.source.weights is not None:
        return False
    is_keras = problem.spec.model.framework == "keras"
    if is_keras and (problem.source.entrypoint or problem.training.network):
        from . import keras_networks

        return keras_networks.has_random_weights(problem)
    if problem.spec.model.framework != "torch":
        return False
    torch = import_framework("torch", "torch")
    first, second = (problem.build_network(seed).state_dict() for seed in (0, 1))
    return first.keys() != second.keys() or any(
        first[name].shape != second[name].shape or not torch.equal(first[name], second[name])
        for name in first
    )


def load_pretrained(network: Any, path: Path, skip: tuple[str, ...], label: str) -> list[str]:
    """Load weights to start from; return the names of the tensors that keep their initial values.

    Args:
        network: the module.
        path: safetensors, or a weights-only checkpoint.
        skip: parts of names that are not restored.
        label: what messages call the network.

    Raises:
        ModelError: a tensor that is not skipped is missing, or has another shape.
        SpecError: a pattern fits nothing.
    """
    from ..frameworks.pytorch import read_state_dict

    state = read_state_dict(path)
    own = network.state_dict()
    shapes, found = ({name: tuple(item[name].shape) for name in item} for item in (own, state))
    chosen, skipped = tensors_to_start_from(shapes, found, skip, path, label)
    network.load_state_dict({**own, **{name: state[name] for name in chosen}})
    return skipped


def tensors_to_start_from(
    own: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    skip: tuple[str, ...],
    path: Path,
    label: str,
) -> tuple[list[str], list[str]]:
    """Return which tensors of a network are restored, and which keep their initial values.

    Args:
        own: shapes of the network's tensors.
        given: shapes of those in the file.
        skip: parts of names that are not restored.
        path: the file.
        label: what messages call the network.

    Raises:
        ModelError: a tensor that is not skipped is missing, or has another shape.
        SpecError: a pattern fits nothing.
    """
    require_matches(skip, [*own, *given], "training.pretrained_skip")
    skipped = [name for name in own if any(part in name for part in skip)]
    chosen = [name for name in own if name not in skipped]
    for name in chosen:
        found = given.get(name, "missing")
        if found != own[name]:
            raise ModelError(
                f"{label}: pretrained weights {path.name}: the tensor {name!r} is {found}; expected"
                f" {own[name]}",
                hint="training.pretrained_skip names what is not restored",
            )
    return chosen, skipped
