"""Lets Neuropod run Python and PyTorch code that Ingot packaged.

Neuropod calls ``get_model(data_root)``, and what that returns with NumPy arrays by keyword, and
expects a dict of arrays. The entry point that the author wrote may return a torch.nn.Module that
wants tensors, or a callable that takes its inputs by position or returns a tuple.
"""

import importlib
import inspect
import json
import os

import numpy as np


def get_model(data_root):
    with open(os.path.join(os.path.dirname(os.path.normpath(data_root)), "config.json")) as file:
        settings = json.load(file)["ingot"]
    module_name, _, attribute = settings["entrypoint"].partition(":")
    entrypoint = _import(module_name)
    for part in attribute.split("."):
        entrypoint = getattr(entrypoint, part)
    kwargs = settings.get("kwargs", {})
    arguments = [data_root] if wants_data_root(entrypoint, kwargs) else []
    model = entrypoint(*arguments, **kwargs)
    if settings.get("recipe"):
        _import("ingot_recipe").apply_recipe(model, settings["recipe"])
    if settings.get("weights"):
        _load_weights(model, os.path.join(data_root, settings["weights"]))
    return _NamedModel(model, settings)


def _import(name):
    """Import a module of this package, or else an installed one."""
    package = __name__.rpartition(".")[0]
    folder = os.path.dirname(os.path.abspath(__file__))
    place = os.path.join(folder, name.split(".")[0])
    if package and (os.path.exists(place + ".py") or os.path.isdir(place)):
        return importlib.import_module("." + name, package)
    return importlib.import_module(name)


def wants_data_root(entrypoint, kwargs=()):
    """Whether an entry point takes the folder of its data as first argument.

    It does when its first parameter is called data_root, or is *args of a function, or has no
    default and is not among the keyword arguments. A class may inherit *args from torch.nn.Module.
    """
    try:
        parameters = list(inspect.signature(entrypoint).parameters.values())
    except (TypeError, ValueError):
        return False
    if not parameters:
        return False
    first = parameters[0]
    if first.name in kwargs:
        return False
    if first.kind is first.VAR_POSITIONAL:
        return not inspect.isclass(entrypoint)
    positional = (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
    return first.kind in positional and (first.default is first.empty or first.name == "data_root")


def _load_weights(model, path):
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(state.get(key), dict):
                state = state[key]
    model.load_state_dict(state)


class _NamedModel:
    """Calls a model the way it wants to be called, and returns arrays by name."""

    def __init__(self, model, settings):
        self.tensors = settings["framework"] == "torch"
        self.model = model.eval() if self.tensors and hasattr(model, "eval") else model
        self.inputs = settings["inputs"]
        self.outputs = settings["outputs"]
        self.by_keyword = _takes_keywords(getattr(model, "forward", model), self.inputs)

    def __call__(self, **arrays):
        if not self.tensors:
            return self._run(arrays)
        import torch

        with torch.no_grad():
            return self._run({name: _to_tensor(array) for name, array in arrays.items()})

    def _run(self, values):
        if self.by_keyword:
            returned = self.model(**values)
        else:
            returned = self.model(*[values[name] for name in self.inputs if name in values])
        return {name: _to_array(value) for name, value in self._named(returned).items()}

    def _named(self, returned):
        if hasattr(returned, "_asdict"):
            fields = returned._asdict()
            return fields if set(self.outputs) <= set(fields) else dict(zip(self.outputs, returned))
        if isinstance(returned, dict):
            return returned
        if isinstance(returned, (list, tuple)) and returned:
            if all(isinstance(part, dict) for part in returned):
                return {name: value for part in returned for name, value in part.items()}
            if len(self.outputs) > 1 or not isinstance(returned[0], str):
                return dict(zip(self.outputs, returned))
        return {self.outputs[0]: returned}


def _takes_keywords(function, names):
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    kinds = [parameter.kind for parameter in parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds or set(names) <= set(parameters)


def _to_tensor(array):
    import torch

    if array.dtype.kind in "UO":
        return array.tolist()
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _to_array(value):
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)
