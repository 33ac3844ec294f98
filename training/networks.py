"""The network of a problem: built, with the weights of its spec, or with those to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, SpecError, UsageError
from ..frameworks.base import LoadOptions, import_framework
from ..frameworks.python import call_entrypoint
from ..specs.declare import Component
from .device import Device

if TYPE_CHECKING:
    from .problem import Problem


def build_network(problem: Problem, seed: int) -> Any:
    """Return a fresh network of PyTorch, with initial weights that the seed decides.

    Raises:
        UsageError: the spec is of another framework.
        ModelError: the entry point fails, or returns no module.
    """
    torch = import_framework("torch", "torch")
    if problem.spec.model.framework != "torch":
        raise UsageError(
            f"{problem.label}: model.framework is {problem.spec.model.framework!r}; only 'torch'"
            " can be trained"
        )
    torch.manual_seed(seed)
    wanted = problem.training.network
    if wanted is None:
        network = call_entrypoint(problem.source, problem.components.code)
        name = problem.source.entrypoint
    else:
        network, name = _named_network(problem, wanted), wanted.name
    if not isinstance(network, torch.nn.Module):
        raise ModelError(
            f"{problem.label}: {name!r} returned a {type(network).__name__}; expected a"
            " torch.nn.Module"
        )
    return network


def _named_network(problem: Problem, wanted: Component) -> Any:
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
    return get_model_by_name(wanted.name, data, **kwargs)


def load_network(problem: Problem, threads: int | None = None) -> Any:
    """Return the network with the weights of the spec, on the device and in eval mode.

    Of another framework than PyTorch, a callable that answers in kind.

    Args:
        problem: names it.
        threads: threads of one operator of another framework.
    """
    from ..frameworks import open_model
    from .evaluation import CallableModel

    if problem.spec.model.framework != "torch":
        options = LoadOptions("gpu" if problem.device is Device.GPU else "cpu", threads)
        return CallableModel(_Adapted(open_model(problem.source, options)), problem.label)
    from ..frameworks.pytorch import load_weights
    from .torch_forward_pass import torch_device_of

    network = problem.build_network()
    if problem.source.weights is not None:
        load_weights(network, problem.source.weights, problem.label)
    return network.to(torch_device_of(problem.device)).eval()


class _Adapted:
    """An adapter's model with the method of a loaded one."""

    def __init__(self, model: Any) -> None:
        self.inputs, self.outputs = model.inputs, model.outputs
        self.infer = model.run


def has_random_weights(problem: Problem) -> bool:
    """Whether the weights of a spec are initial ones, which another seed would change.

    That is so where ``model.weights`` is missing and the entry point reads none by itself.
    """
    if problem.spec.model.framework != "torch" or problem.source.weights is not None:
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
    from .torch_optim import require_matches

    state = read_state_dict(path)
    own = network.state_dict()
    require_matches(skip, [*own, *state], "training.pretrained_skip")
    skipped = [name for name in own if any(part in name for part in skip)]
    for name, value in own.items():
        if name in skipped:
            continue
        if name not in state or state[name].shape != value.shape:
            found = "missing" if name not in state else tuple(state[name].shape)
            raise ModelError(
                f"{label}: pretrained weights {path.name}: the tensor {name!r} is {found}; expected"
                f" {tuple(value.shape)}",
                hint="training.pretrained_skip names what is not restored",
            )
    chosen = {name: state[name] for name in own if name not in skipped}
    network.load_state_dict({**own, **chosen})
    return skipped
