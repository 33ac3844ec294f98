"""PyTorch code: an entry point that returns an ``nn.Module``, and its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .base import LayerOutput, LoadOptions, Model, ModelSource, check_weights, is_zip
from .calling import name_outputs, takes_keywords
from .entrypoints import CodeFolder, user_code_error
from .python import call_entrypoint, code_folder
from .torch_tensors import TensorConverter, import_torch, load_custom_ops, torch_device

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .base import Arrays


def load(source: ModelSource, options: LoadOptions) -> Model:
    """Build the module, load its weights and put it into eval mode.

    Raises:
        ModelError: the entry point fails or returns no module, or the weights do not fit, or are
            not those of ``weights_sha256``.
        MissingDependencyError: PyTorch is not installed.
    """
    torch = import_torch(options)
    load_custom_ops(source.custom_ops, source.label)
    check_weights(source)
    code = code_folder(source)
    module = call_entrypoint(source, code) if source.native is None else _live(source)
    if not isinstance(module, torch.nn.Module):
        if not callable(module):
            raise ModelError(
                f"{source.label}: the entry point {source.entrypoint!r} returned a"
                f" {type(module).__name__}; expected a torch.nn.Module"
            )
        # Neuropod's PyTorch packages may return any callable of tensors.
        return _TorchModel(source, torch_device(options.device), module, code)
    if source.weights is not None:
        load_weights(module, source.weights, source.label)
    device = torch_device(options.device)
    return _TorchModel(source, device, module.to(device).eval(), code)


def _live(source: ModelSource) -> Any:
    """Return a copy of a live module, pruned as the recipe says."""
    from .torch_recipe import apply_recipe

    module = copy.deepcopy(source.native)
    return module if source.recipe is None else apply_recipe(module, source.recipe, source.label)


def load_weights(module: torch.nn.Module, path: Path, label: str) -> None:
    """Load a state dict from a safetensors file or a ``weights_only`` checkpoint, strictly.

    A checkpoint may hold the state dict itself, or under ``state_dict`` or ``model``.

    Raises:
        ModelError: the file cannot be read without running code, or does not fit the module.
    """
    state = read_state_dict(path)
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        detail = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ModelError(f"{label}: weights {path.name} do not fit: {detail[0]}") from error
    for kind, names in (
        ("lacks", result.missing_keys),
        ("has the unknown", result.unexpected_keys),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"{label}: weights {path.name} do not fit {type(module).__name__}:"
                f" the file {kind} tensor {names[0]!r}{more}"
            )


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name from a safetensors file or a ``weights_only`` checkpoint.

    Raises:
        ModelError: the file is damaged, or would have to run code to be read.
    """
    torch = import_torch()
    if path.suffix == ".safetensors":
        from .base import import_framework

        import_framework("safetensors", "torch")
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a readable safetensors file: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
    except Exception as error:
        raise ModelError(
            f"{path}: cannot be read as plain tensors: it is damaged, or a pickle that holds code,"
            " which Ingot never loads",
            hint="save module.state_dict() with safetensors.torch.save_file",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise ModelError(f"{path}: found a {type(state).__name__}; expected tensors by name")
    return state


class _TorchModel(Model):
    def __init__(
        self, source: ModelSource, device: torch.device, native: Any, code: CodeFolder
    ) -> None:
        torch = import_torch()
        if source.inputs is None or source.outputs is None:
            raise ModelError(f"{source.label}: PyTorch code needs inputs and outputs in its spec")
        self.inputs, self.outputs = source.inputs, source.outputs
        self.native = native
        self.version = torch.__version__
        self._label = source.label
        self._code = code
        self._converter = TensorConverter(device, source.label, native)
        names = [spec.name for spec in self.inputs]
        self._by_keyword = takes_keywords(getattr(native, "forward", native), names)
        self._output_names = [spec.name for spec in self.outputs]

    def run(
        self, arrays: Arrays, outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        converter = self._converter
        if self._by_keyword:
            names = list(arrays)
        else:
            names = [spec.name for spec in self.inputs if spec.name in arrays]
        try:
            returned = converter.call(arrays, names, self._invoke)
        except Exception as error:
            raise user_code_error(self._label, "the model", error, self._code.folder) from error
        named = name_outputs(returned, self._output_names, self._label)
        return converter.to_arrays(named, outputs, arrays)

    def _invoke(self, tensors: Mapping[str, Any]) -> Any:
        if self._by_keyword:
            return self.native(**tensors)
        return self.native(*tensors.values())

    def layers(self, arrays: Arrays) -> list[LayerOutput]:
        from .layers import torch_layers

        if not hasattr(self.native, "named_modules"):
            return []
        return torch_layers(self.native, lambda: self.run(arrays))

    def close(self) -> None:
        self._code.close()
