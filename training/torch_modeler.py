"""The modeler of PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .declared import DeclaredTensors, named_inputs
from .device import Device
from .evaluation import Evaluation, run_evaluation
from .forward_pass import ForwardPass
from .losses import LossFunction, loss_parts
from .modeler import Modeler
from .options import Precision
from .torch_forward_pass import move, torch_device_of
from .torch_metrics import evaluating
from .torch_state import write_network


class TorchModeler(Modeler):
    """A network of PyTorch with its loss and metrics.

    Args:
        network: the module; moved to the device.
        forward_pass: how a batch reaches it.
        loss: ``(model, batch)`` to a scalar tensor, or a dict of them.
        evaluation: ``(model, loader)`` to metrics.
        device: where it runs.
        precision: ``bf16`` computes the loss under autocast; evaluation is always as it ships.
        channels_last: keep images and filters channels-last in memory.
    """

    def __init__(
        self,
        network: Any,
        forward_pass: ForwardPass,
        loss: Any,
        evaluation: Any,
        device: str | Device = Device.CPU,
        precision: Precision = "fp32",
        channels_last: bool = False,
    ) -> None:
        import torch

        self.device = device
        self.torch_device = torch_device_of(device)
        memory = {"memory_format": torch.channels_last} if channels_last else {}
        self.network = network.to(self.torch_device, **memory)
        self.parallel = self.network
        self.forward_pass = forward_pass
        self.loss = loss
        self.evaluation = evaluation
        self.precision = precision
        self.average: dict[str, Any] | None = None
        self._updates = 0
        self._outputs: Any = None
        self._hook: Any = None
        values = self.network.state_dict().items()
        self._masks = {name for name, value in values if not _is_finite(value)}
        if isinstance(loss, LossFunction):
            loss.to_device(device)

    def share(self, local_rank: int) -> None:
        from torch.nn.parallel import DistributedDataParallel

        places = None if self.torch_device.type == "cpu" else [local_rank]
        self.parallel = DistributedDataParallel(self.network, device_ids=places)

    def compute_loss(self, batch: Any) -> Mapping[str, Any]:
        import torch

        if self.precision == "fp32":
            return loss_parts(self.loss(self.parallel, batch))
        with torch.autocast(self.torch_device.type, torch.bfloat16):
            return loss_parts(self.loss(self.parallel, batch))

    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        with self.averaged(), evaluating(self.network):
            return run_evaluation(self.evaluation, self.network, loader, self.device)

    @contextmanager
    def comparing(self, declared: DeclaredTensors) -> Iterator[None]:
        names = [spec.name for spec in declared.inputs]
        seen: set[bool] = set()  # a batch in training, and one in evaluation

        def before(module: Any, args: Any, kwargs: Any) -> None:
            if module.training not in seen:
                declared.require_inputs(named_inputs(module.forward, args, kwargs, names))

        def after(module: Any, arguments: Any, outputs: Any) -> None:
            if module.training not in seen:
                seen.add(module.training)
                declared.require_outputs(outputs)

        handles = [
            self.network.register_forward_pre_hook(before, with_kwargs=True),
            self.network.register_forward_hook(after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def keep_outputs(self) -> None:
        def keep(module: Any, arguments: Any, outputs: Any) -> None:
            self._outputs = outputs if module.training else None

        if self._hook is None:
            self._hook = self.network.register_forward_hook(keep)

    def batch_accuracy(self, batch: Any) -> float | None:
        import torch

        self.keep_outputs()
        scores = self._outputs
        if not isinstance(scores, torch.Tensor) or scores.ndim != 2:
            return None
        try:
            targets = move(self.forward_pass.extract_targets(batch), self.device)
        except InputError:
            return None
        if not isinstance(targets, torch.Tensor) or targets.numel() != len(scores):
            return None
        return 100.0 * float((scores.argmax(1) == targets.reshape(-1)).float().mean())

    def start_average(self) -> None:
        if self.average is None:
            state = self.network.state_dict()
            self.average = {name: value.detach().clone() for name, value in state.items()}

    def update_average(self, decay: float) -> None:
        import torch

        self.start_average()
        assert self.average is not None
        state = self.network.state_dict()
        self._updates += 1
        # As TensorFlow does: in the first steps the start must not weigh as much as later.
        decay = min(decay, (1 + self._updates) / (10 + self._updates))
        names = [
            name
            for name, value in state.items()
            if value.is_floating_point() and name not in self._masks
        ]
        torch._foreach_lerp_(
            [self.average[name] for name in names], [state[name] for name in names], 1 - decay
        )
        for name in state.keys() - set(names):
            self.average[name].copy_(state[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        if self.average is None:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def weights(self) -> dict[str, Any]:
        """Return the tensors of the result by name: the averaged ones, if there are any."""
        return dict(self.network.state_dict() if self.average is None else self.average)

    def write_weights(self, path: Path) -> None:
        write_network(path, self.weights())

    def not_finite(self) -> str | None:
        for values, what in ((self.network.state_dict(), "weight"), (self.average, "average of")):
            checked = {n: v for n, v in (values or {}).items() if n not in self._masks}
            if not _are_finite(checked.values()):
                name = next(name for name, value in checked.items() if not _is_finite(value))
                return f"the {what} {name!r}"
        return None

    def load_pretrained(self, path: Path, skip: tuple[str, ...], label: str) -> list[str]:
        from .networks import load_pretrained

        return load_pretrained(self.network, path, skip, label)

    def state(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "average": self.average,
            "updates": self._updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.average is None:  # weights are not averaged, or no longer
            return
        self.average, self._updates = None, 0
        self.start_average()
        if state["average"] is not None:
            self.average = {n: v.to(self.torch_device) for n, v in state["average"].items()}
            self._updates = state["updates"]


def _is_finite(value: Any) -> bool:
    return _are_finite([value])


def _are_finite(values: Iterable[Any]) -> bool:
    """Whether tensors hold no NaN and no infinity; an accelerator is asked once for all."""
    import torch

    found = [v.isfinite().all() for v in values if v.is_floating_point() or v.is_complex()]
    return not found or bool(torch.stack(found).all())
