"""What a spec says about training and evaluation, as objects: data, network, loss, metrics."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ModelError, SpecError, UsageError
from ..frameworks import ModelSource
from ..frameworks.base import LoadOptions, import_framework
from ..frameworks.entrypoints import CodeFolder
from ..frameworks.python import call_entrypoint, code_folder
from ..runtime.sources import source_from_spec, spec_label
from ..specs import ModelSpec
from ..specs.declare import Component
from ..specs.training import TrainingSection
from .components import Components
from .data import DataContext, Splits, make_splits, split_of
from .device import Device, available_cores
from .forward_pass import ForwardPass

_TASKS = {
    "classification": ("cross_entropy", "classification"),
    "segmentation": ("segmentation_cross_entropy", "segmentation"),
    "object_detection": ("ssd_multibox", "object_detection"),
}
"""Loss and evaluation of each task."""


def choose_device(wanted: Device | str | None, strict: bool = False) -> Device:
    """Return the device: the one that is wanted, or a GPU where there is one.

    Raises:
        UsageError: there is no GPU, and ``strict``.
    """
    from .device import as_device

    torch = import_framework("torch", "torch")
    has_gpu = bool(torch.cuda.is_available())
    if wanted is None:
        return Device.GPU if has_gpu else Device.CPU
    device = as_device(wanted)
    if device is Device.GPU and not has_gpu:
        if strict:
            raise UsageError("device: found GPU, but PyTorch sees no GPU here (--strict)")
        logging.getLogger("ingot").warning(
            "device GPU: PyTorch sees no GPU here; running on the CPU"
        )
        return Device.CPU
    return device


def set_threads(threads: int | None) -> None:
    """Set how many threads an operator of PyTorch may use.

    Args:
        threads: how many; None leaves ``OMP_NUM_THREADS``, and otherwise takes no more than there
            are cores for this process: more are many times slower than too few.
    """
    torch = import_framework("torch", "torch")
    if threads is None:
        if "OMP_NUM_THREADS" in os.environ:
            return
        threads = min(int(torch.get_num_threads()), available_cores())
    torch.set_num_threads(threads)


@dataclass
class Problem:
    """The parts of training and evaluation that one spec names; each is made when it is used.

    Attributes:
        spec: the spec.
        device: where it runs.
        seed: of data, initial weights and order.
    """

    spec: ModelSpec
    device: Device = Device.CPU
    seed: int = 0

    @cached_property
    def label(self) -> str:
        """What messages call the spec."""
        return spec_label(self.spec)

    @cached_property
    def source(self) -> ModelSource:
        """Where the model comes from."""
        return source_from_spec(self.spec)

    @cached_property
    def components(self) -> Components:
        """The modules beside the spec, imported once for all parts."""
        if self.source.code_root is not None:
            return Components(code_folder(self.source), self.label)
        return Components(CodeFolder(self.spec.root, self.label), self.label)

    @cached_property
    def training(self) -> TrainingSection:
        """The section ``training``, or its defaults."""
        return self.spec.training or TrainingSection()

    @cached_property
    def splits(self) -> Splits:
        """The data by split.

        Raises:
            SpecError: the spec has neither ``data`` nor ``training.inputter``.
        """
        data, inputter = self.spec.data, self.training.inputter
        if data is None and inputter is None:
            raise SpecError(
                f"{self.label}: the key 'data' is missing; expected the splits, or"
                " training.inputter",
                hint="data: {splits: digits}",
            )
        if data is not None and inputter is not None:
            raise SpecError(
                f"{self.label}: found both data and training.inputter; expected one of them"
            )
        augmenter = None
        if self.training.augmenter is not None:
            augmenter = self.components.make(
                "augmenter", self.training.augmenter, "training.augmenter"
            )
        context = DataContext(
            self.spec.root,
            self.seed,
            augmenter,
            self.training.batch_size,
            self._convert,
            tuple(tensor.name for tensor in self.spec.inputs or ()),
            self.label,
        )
        if data is not None:
            return make_splits(self.components, data.splits, data.kwargs, "data.splits", context)
        assert inputter is not None
        return make_splits(
            self.components, inputter.name, inputter.kwargs, "training.inputter", context
        )

    def split(self, name: str, key: str) -> Any:
        """Return one split.

        Raises:
            SpecError: there is no such split.
        """
        return split_of(self.splits, name, self.label, key)

    @cached_property
    def forward_pass(self) -> ForwardPass:
        """How a batch reaches the model."""
        from .torch_forward_pass import TorchForwardPass

        section = self.spec.forward_pass
        if section.name is None:
            return TorchForwardPass(section.model_input_pattern, section.expecting_common_inputs)
        found = self.components.make(
            "forward_pass",
            Component(section.name, section.kwargs),
            "forward_pass",
            model_input_pattern=section.model_input_pattern,
            expecting_common_inputs=section.expecting_common_inputs,
        )
        return _of_kind(found, ("extract_model_inputs", "model_call"), self.label, "forward_pass")

    @cached_property
    def loss(self) -> Any:
        """What training minimises.

        Raises:
            SpecError: neither the spec nor its task names one.
        """
        wanted = self.spec.loss
        if wanted is None:
            if self.spec.task is None:
                raise SpecError(
                    f"{self.label}: the key 'loss' is missing; expected it, or task",
                    hint="task: classification",
                )
            wanted = Component(_TASKS[self.spec.task][0])
        return self._make_loss(wanted)

    def _make_loss(self, wanted: Component) -> Any:
        from .components import BUILT_IN
        from .torch_losses import Criterion, named_torch_loss

        torch = import_framework("torch", "torch")
        context: dict[str, Any] = {"device": self.device, "forward_pass": self.forward_pass}
        if not wanted.is_entrypoint and wanted.name not in BUILT_IN["loss"]:
            module = named_torch_loss(wanted.name, wanted.kwargs, f"{self.label}: loss")
            return Criterion(module, **context)
        found = self.components.make("loss", wanted, "loss", **context)
        if isinstance(found, torch.nn.Module):
            return Criterion(found, **context)
        if not callable(found):
            raise SpecError(
                f"{self.label}: loss {wanted.name!r} is a {type(found).__name__}; expected a"
                " LossFunction, a torch.nn loss, or a function (model, batch)"
            )
        return found

    @cached_property
    def evaluation(self) -> Any:
        """What measures the model.

        Raises:
            SpecError: neither the spec nor its task names one.
        """
        section = self.spec.evaluation
        name, kwargs = section.function, section.kwargs
        if name is None:
            if self.spec.task is None:
                raise SpecError(
                    f"{self.label}: the key 'evaluation.function' is missing; expected it, or task",
                    hint="task: classification",
                )
            name = _TASKS[self.spec.task][1]
        found = self.components.make(
            "evaluation",
            Component(name, kwargs),
            "evaluation.function",
            forward_pass=self.forward_pass,
            device=self.device,
        )
        if not callable(found):
            raise SpecError(
                f"{self.label}: evaluation.function {name!r} is a {type(found).__name__}; expected"
                " an EvaluationFunction, or a function (model, loader)"
            )
        return found

    def build_network(self, seed: int | None = None) -> Any:
        """Return a fresh network of PyTorch, with initial weights that the seed decides.

        ``model.weights`` is not read.

        Raises:
            UsageError: the spec is of another framework.
            ModelError: the entry point fails, or returns no module.
        """
        torch = import_framework("torch", "torch")
        if self.spec.model.framework != "torch":
            raise UsageError(
                f"{self.label}: model.framework is {self.spec.model.framework!r}; only 'torch' can"
                " be trained"
            )
        torch.manual_seed(self.seed if seed is None else seed)
        wanted = self.training.network
        if wanted is None:
            network = call_entrypoint(self.source, self.components.code)
            name = self.source.entrypoint
        else:
            network, name = self._named_network(wanted), wanted.name
        if not isinstance(network, torch.nn.Module):
            raise ModelError(
                f"{self.label}: {name!r} returned a {type(network).__name__}; expected a"
                " torch.nn.Module"
            )
        return network

    def _named_network(self, wanted: Component) -> Any:
        if wanted.is_entrypoint:
            function = self.components.code.callable(wanted.name, "training.network")
            return self.components.call(function, wanted.kwargs, "training.network", wanted.name)
        from ..zoo import get_model_by_name

        kwargs = dict(wanted.kwargs)
        data = kwargs.pop("dataset_name", kwargs.pop("dataset", None))
        if not isinstance(data, str):
            raise SpecError(
                f"{self.label}: training.network {wanted.name!r}: the key 'dataset' is missing;"
                " expected the data set that it is for"
            )
        return get_model_by_name(wanted.name, data, **kwargs)

    def load_network(self) -> Any:
        """Return the network with the weights of the spec, on the device and in eval mode.

        Of another framework than PyTorch, a callable that answers in kind.
        """
        from ..frameworks import open_model
        from .evaluation import CallableModel

        if self.spec.model.framework != "torch":
            return CallableModel(_Adapted(open_model(self.source, self._load_options)), self.label)
        from ..frameworks.pytorch import load_weights
        from .torch_forward_pass import torch_device_of

        network = self.build_network()
        if self.source.weights is not None:
            load_weights(network, self.source.weights, self.label)
        return network.to(torch_device_of(self.device)).eval()

    @property
    def _load_options(self) -> LoadOptions:
        return LoadOptions("gpu" if self.device is Device.GPU else "cpu")

    @cached_property
    def _convert(self) -> Callable[[Any], Any]:
        torch = import_framework("torch", "torch")
        if self.device is Device.CPU:
            convert: Callable[[Any], Any] = torch.from_numpy
            return convert
        return lambda array: torch.from_numpy(array).pin_memory()


class _Adapted:
    """An adapter's model with the method of a loaded one."""

    def __init__(self, model: Any) -> None:
        self.inputs, self.outputs = model.inputs, model.outputs
        self.infer = model.run


def _of_kind(found: Any, methods: tuple[str, ...], label: str, key: str) -> Any:
    for method in methods:
        if not callable(getattr(found, method, None)):
            raise SpecError(
                f"{label}: {key}: found a {type(found).__name__} without {method}; expected a"
                " ForwardPass"
            )
    return found


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
