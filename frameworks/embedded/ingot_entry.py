"""Lets Neuropod run Python and PyTorch code that Ingot packaged.

Neuropod calls ``get_model(data_root)`` and hands NumPy arrays to what it returns. The entry point
that the author wrote may return a torch.nn.Module that wants tensors; 0/config.json says so.
"""

import importlib
import inspect
import json
import os


def get_model(data_root):
    with open(os.path.join(data_root, os.pardir, "config.json")) as file:
        config = json.load(file)
    settings = config["ingot"]
    module_name, _, attribute = settings["entrypoint"].partition(":")
    entrypoint = _import(module_name)
    for part in attribute.split("."):
        entrypoint = getattr(entrypoint, part)
    arguments = [data_root] if wants_data_root(entrypoint) else []
    model = entrypoint(*arguments, **settings.get("kwargs", {}))
    if settings["framework"] != "torch":
        return model
    if settings.get("weights"):
        _load_weights(model, os.path.join(data_root, settings["weights"]))
    return _TensorModel(model, settings["inputs"], settings["outputs"])


def _import(name):
    """Import a module of this package, or else an installed one."""
    package = __name__.rpartition(".")[0]
    folder = os.path.dirname(os.path.abspath(__file__))
    place = os.path.join(folder, name.split(".")[0])
    if package and (os.path.exists(place + ".py") or os.path.isdir(place)):
        return importlib.import_module("." + name, package)
    return importlib.import_module(name)


def wants_data_root(entrypoint):
    """Whether an entry point takes the folder of its data as first argument.

    It does when its first parameter has no default, is called data_root, or is *args.
    """
    try:
        parameters = list(inspect.signature(entrypoint).parameters.values())
    except (TypeError, ValueError):
        return False
    if not parameters:
        return False
    first = parameters[0]
    if first.kind is first.VAR_POSITIONAL or first.name == "data_root":
        return True
    positional = (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
    return first.kind in positional and first.default is first.empty


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


class _TensorModel:
    """Calls a module with tensors, and returns arrays by name."""

    def __init__(self, model, inputs, outputs):
        self.model = model.eval() if hasattr(model, "eval") else model
        self.inputs = inputs
        self.outputs = outputs
        names = inspect.signature(getattr(model, "forward", model)).parameters
        kinds = [parameter.kind for parameter in names.values()]
        self.by_keyword = inspect.Parameter.VAR_KEYWORD in kinds or set(inputs) <= set(names)

    def __call__(self, **arrays):
        import torch

        tensors = {
            name: array.tolist() if array.dtype.kind in "UO" else torch.from_numpy(array)
            for name, array in arrays.items()
        }
        with torch.no_grad():
            if self.by_keyword:
                returned = self.model(**tensors)
            else:
                returned = self.model(*[tensors[name] for name in self.inputs])
        if hasattr(returned, "_asdict"):
            returned = returned._asdict()
        if not isinstance(returned, (dict, list, tuple)):
            returned = [returned]
        if not isinstance(returned, dict):
            returned = dict(zip(self.outputs, returned))
        return {
            name: value.cpu().numpy() if isinstance(value, torch.Tensor) else value
            for name, value in returned.items()
        }
