"""What a spec says about training and evaluation, as objects: data, network, loss, metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import SpecError
from ..frameworks import ModelSource
from ..frameworks.base import import_framework
from ..frameworks.entrypoints import CodeFolder
from ..frameworks.python import code_folder
from ..runtime.sources import source_from_spec, spec_label
from ..specs import ModelSpec
from ..specs.declare import Component
from ..specs.training import TrainingSection
from . import networks
from .components import Components
from .data import DataContext, Splits, make_splits, split_of
from .device import Device
from .forward_pass import ForwardPass
from .hardware import has_torch

_TASKS = {
    "classification": ("cross_entropy", "classification"),
    "segmentation": ("segmentation_cross_entropy", "segmentation"),
    "object_detection": ("ssd_multibox", "object_detection"),
}
"""Loss and evaluation of each task."""


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
        wanted = self.data_component
        return make_splits(
            self.components, wanted.name, wanted.kwargs, self.data_key, self.data_context
        )

    @cached_property
    def data_component(self) -> Component:
        """What gives the data: ``data.splits``, or ``training.inputter``.

        Raises:
            SpecError: the spec has neither, or both.
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
        if data is not None:
            return Component(data.splits, data.kwargs)
        assert inputter is not None
        return inputter

    @property
    def data_key(self) -> str:
        """Where the spec names it."""
        return "data.splits" if self.spec.data is not None else "training.inputter"

    @cached_property
    def data_context(self) -> DataContext:
        """What built-in inputters get beside their arguments."""
        augmenter = None
        if self.training.augmenter is not None:
            augmenter = self.components.make(
                "augmenter", self.training.augmenter, "training.augmenter"
            )
        inputs = self.spec.inputs or ()
        network = self.training.network
        tokens = (self.spec.model if network is None else network).kwargs.get("tokens")
        return DataContext(
            self.spec.root,
            self.seed,
            augmenter,
            self.training.batch_size,
            self._convert,
            tuple(tensor.name for tensor in inputs),
            self.label,
            tuple(tensor.shape for tensor in inputs),
            self._image_layout,
            "data.kwargs" if self.spec.data is not None else "training.inputter",
            self.spec.model.weights,
            tokens if type(tokens) is int else None,
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
        section = self.spec.forward_pass
        if section.name is None:
            kind = self._forward_pass_class
            return kind(section.model_input_pattern, section.expecting_common_inputs)
        found = self.components.make(
            "forward_pass",
            Component(section.name, section.kwargs),
            "forward_pass",
            model_input_pattern=section.model_input_pattern,
            expecting_common_inputs=section.expecting_common_inputs,
        )
        return _of_kind(found, ("extract_model_inputs", "model_call"), self.label, "forward_pass")

    @property
    def _forward_pass_class(self) -> type[ForwardPass]:
        if self._is_keras:
            from .keras_forward_pass import KerasForwardPass

            return KerasForwardPass
        from .torch_forward_pass import TorchForwardPass

        return TorchForwardPass

    @property
    def _is_keras(self) -> bool:
        return self.spec.model.framework == "keras"

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
        context: dict[str, Any] = {"device": self.device, "forward_pass": self.forward_pass}
        if self._is_keras:
            from .keras_losses import make_loss

            return make_loss(wanted, self.components, **context)
        from .components import BUILT_IN
        from .torch_losses import Criterion, named_torch_loss

        torch = import_framework("torch", "torch")
        if not wanted.is_entrypoint and wanted.name not in BUILT_IN["loss"]:
            module = named_torch_loss(wanted.name, wanted.kwargs, f"{self.label}: loss")
            return Criterion(module, **context)
        found = self.components.make("loss", wanted, "loss", **context, problem=self)
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
        wanted = Component(name, kwargs)
        context: dict[str, Any] = {"forward_pass": self.forward_pass, "device": self.device}
        if self._is_keras:
            from .keras_metrics import make_evaluation

            found = make_evaluation(wanted, self.components, **context)
        else:
            key = "evaluation.function"
            found = self.components.make("evaluation", wanted, key, **context, problem=self)
        if not callable(found):
            raise SpecError(
                f"{self.label}: evaluation.function {name!r} is a {type(found).__name__}; expected"
                " an EvaluationFunction, or a function (model, loader)"
            )
        return found

    def build_network(self, seed: int | None = None) -> Any:
        """Return a fresh network of PyTorch or Keras, with initial weights that the seed decides.

        ``model.weights`` is not read.

        Raises:
            UsageError: the spec is of another framework.
            ModelError: the entry point fails, or returns no module.
        """
        return networks.build_network(self, self.seed if seed is None else seed)

    def load_network(self, threads: int | None = None) -> Any:
        """Return the network with the weights of the spec, on the device and in eval mode.

        Of another framework than PyTorch, a callable that answers in kind.

        Args:
            threads: threads of one operator of another framework.
        """
        return networks.load_network(self, threads)

    @property
    def _image_layout(self) -> Callable[[Any], Any] | None:
        if not self._is_keras:
            return None
        from .image_layout import ChannelsLast

        return ChannelsLast(tuple(tensor.shape for tensor in self.spec.inputs or ()), self.label)

    @cached_property
    def _convert(self) -> Callable[[Any], Any] | None:
        if self._is_keras or (self.spec.model.framework != "torch" and not has_torch()):
            return None  # any other model answers arrays with arrays
        torch = import_framework("torch", "torch")
        if self.device is Device.CPU:
            convert: Callable[[Any], Any] = torch.from_numpy
            return convert
        return lambda array: torch.from_numpy(array).pin_memory()


def _of_kind(found: Any, methods: tuple[str, ...], label: str, key: str) -> Any:
    for method in methods:
        if not callable(getattr(found, method, None)):
            raise SpecError(
                f"{label}: {key}: found a {type(found).__name__} without {method}; expected a"
                " ForwardPass"
            )
    return found
