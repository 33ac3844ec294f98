"""Objects in place of a spec: a module in this process, its data, and what measures it."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..specs import ModelSpec
from ..training.evaluation import CallableModel

if TYPE_CHECKING:
    from torch import nn

    from ..frameworks import ModelSource
    from ..training.device import Device
    from ..training.forward_pass import ForwardPass
    from ..training.problem import Problem

_LOCAL = "<locals>."
_CLOSE = 1e-4
"""Largest difference of outputs that counts as the same, relative to the largest output."""


@dataclass(frozen=True)
class LiveModel:
    """What a search is given in place of what a spec names.

    Attributes:
        network: the module; it stays as it is.
        data: iterables of batches by split.
        forward_pass: how a batch reaches the module.
        loss: an object or a class; None takes that of the task.
        loss_kwargs: arguments of the class.
        evaluation: an object, a class or a function; None takes that of the task.
        optimizer: what trains, in place of what the spec says; None leaves that.
        external_loop: trains in place of Ingot's own loop.
        home: the folder of runs; None takes ``INGOT_HOME``.
    """

    network: nn.Module
    data: Mapping[str, Any]
    forward_pass: ForwardPass
    loss: Any = None
    loss_kwargs: Mapping[str, Any] | None = None
    evaluation: Any = None
    optimizer: Any = None
    external_loop: Any = None
    home: Path | None = None

    def problem(self, spec: ModelSpec, device: Device, seed: int) -> Problem:
        """Return the problem whose parts these objects are; the spec says the rest.

        Raises:
            UsageError: a part cannot be made, or is none.
        """
        from ..frameworks.entrypoints import CodeFolder
        from ..training.components import Components
        from ..training.problem import Problem

        problem = Problem(spec, device, seed)
        problem.source = live_source(spec, self.network)
        # The frames of an error that are shown are those of the user's own code, wherever it lies.
        problem.components = Components(CodeFolder(problem.source.code_root, spec.name), spec.name)
        problem.splits = dict(self.data)
        problem.forward_pass = self.forward_pass
        context = {"device": device, "forward_pass": self.forward_pass}
        if self.loss is not None:
            problem.loss = _loss(self.loss, dict(self.loss_kwargs or {}), context)
        if self.evaluation is not None:
            problem.evaluation = made(self.evaluation, {}, context, "eval_func")
        return problem

    def copy(self, device: Device) -> nn.Module:
        """Return a copy of the module on a device, in eval mode."""
        from ..optimizers.pruning.modules import copy_module
        from ..training.torch_forward_pass import torch_device_of

        return copy_module(self.network).to(torch_device_of(device)).eval()

    def identity(self) -> dict[str, Any]:
        """Return what decides a search and stands in no spec, as JSON values."""
        from ..optimizers.fingerprint import describe

        classes = {type(module) for module in self.network.modules()}
        own = sorted(
            (describe(kind) for kind in classes if not kind.__module__.startswith("torch.")),
            key=str,
        )
        # Shapes that a forward pass has seen depend on who used it before.
        seen = {name: None for name in ("_seen",) if hasattr(self.forward_pass, name)}
        fresh = copy.copy(self.forward_pass)
        vars(fresh).update(seen)
        given = [
            fresh,
            self.loss,
            self.loss_kwargs,
            self.evaluation,
            self.optimizer,
            self.external_loop,
        ]
        return {"classes": own, "parts": describe(given)}


class NamedAnswers(CallableModel):
    """A file that answers with a dict by output, as the module that it was made of does."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        returned = super().__call__(*args, **kwargs)
        values = returned if isinstance(returned, tuple) else (returned,)
        return {spec.name: value for spec, value in zip(self.loaded.outputs, values, strict=True)}


def made(given: Any, kwargs: dict[str, Any], context: Mapping[str, Any], key: str) -> Any:
    """Return an object of a class, with what its constructor takes of a context.

    Raises:
        UsageError: it cannot be made, or called.
    """
    from ..frameworks.base import first_line
    from ..training.components import accepted

    if isinstance(given, type):
        try:
            given = given(**{**accepted(given, context), **kwargs})
        except Exception as error:
            raise UsageError(
                f"{key}: {given.__name__} cannot be made: {type(error).__name__}:"
                f" {first_line(error)}"
            ) from error
    elif kwargs:
        raise UsageError(
            f"{key}: found arguments for a {type(given).__name__}; expected a class that takes them"
        )
    if not callable(given):
        raise UsageError(
            f"{key}: found a {type(given).__name__}; expected something that can be called"
        )
    return given


def _loss(given: Any, kwargs: dict[str, Any], context: Mapping[str, Any]) -> Any:
    import torch

    from ..training.torch_losses import Criterion

    loss = made(given, kwargs, context, "loss_function_cls")
    return Criterion(loss, **context) if isinstance(loss, torch.nn.Module) else loss


def entrypoint_of(network: Any) -> tuple[str, Path | None]:
    """Return ``module:Class`` of a module, and the folder that it can be imported from, if any."""
    kind = type(network)
    name = re.sub(r"[^\w.]", "_", kind.__module__)
    attribute = re.sub(r"[^\w.]", "_", kind.__qualname__.replace(_LOCAL, ""))
    return f"{name}:{attribute}", _root_of(kind)


def _root_of(kind: type) -> Path | None:
    """Return the folder that the user's own code starts in; None for a script, or a library."""
    loaded = sys.modules.get(kind.__module__)
    file = getattr(loaded, "__file__", None)
    if file is None or kind.__module__ == "__main__":
        return None
    path = Path(file).absolute()
    parts = kind.__module__.split(".")
    is_package = path.name == "__init__.py"
    above = path.parents[len(parts) - (0 if is_package else 1)]
    expected = above.joinpath(*parts)
    expected = expected / "__init__.py" if is_package else expected.with_suffix(".py")
    if expected != path or "site-packages" in path.parts:
        return None
    return above


def live_source(spec: ModelSpec, network: nn.Module) -> ModelSource:
    """Return the source that a module in this process is."""
    from ..runtime.sources import source_from_spec

    _, root = entrypoint_of(network)
    return replace(source_from_spec(spec), native=network, code_root=root)


def why_not_rebuilt(source: ModelSource, run: Callable[[Any], Any]) -> str | None:
    """Return why another process cannot build a live module from its class; None when it can.

    Args:
        source: of the module.
        run: calls a module on some inputs and returns its outputs, a list of tensors.
    """
    import torch

    from ..frameworks.base import first_line

    network = source.native
    kind = type(network)
    if kind.__module__ == "__main__":
        return f"{kind.__name__} is defined in the script that runs"
    if _LOCAL in kind.__qualname__:
        return f"{kind.__name__} is defined inside of a function"
    if source.code_root is None:
        return f"{kind.__name__} is the class of a library"
    for name, parameter in inspect.signature(kind).parameters.items():
        is_rest = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not is_rest:
            return f"{kind.__name__} cannot be made without its argument {name!r}"
    try:
        with torch.random.fork_rng(devices=[]):
            fresh = kind().eval()
        fresh.load_state_dict(network.state_dict())
        before, after = run(network), run(fresh)
    except Exception as error:
        return f"{kind.__name__}() is another network: {first_line(error)}"
    for first, second in zip(before, after, strict=False):
        limit = _CLOSE * float(first.abs().max().clamp(min=1))
        if first.shape != second.shape or float((first - second).abs().max()) > limit:
            return f"{kind.__name__}() computes something else with the same weights"
    return None
