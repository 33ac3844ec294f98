"""Recovery learns from the reference, too: knowledge distillation beside the spec's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...training.losses import loss_parts
from .modules import tensors_in

if TYPE_CHECKING:
    import torch
    from torch import nn

TEMPERATURE = 4.0
WEIGHT = 1.0


class Distilled:
    """A loss with a part that compares outputs with those of a teacher.

    Class scores are compared as Hinton et al., 2015, arXiv:1503.02531 do (Kullback-Leibler
    divergence at a temperature, times its square); other outputs by their mean squared difference,
    relative to the variance of the teacher's. What differs in shape is left out.

    Args:
        loss: of the spec.
        student: the module that is trained; its calls are watched.
        teacher: a module that takes the same arguments.
        scores: whether two or more dimensions of outputs hold class scores in their second one.
    """

    def __init__(self, loss: Any, student: nn.Module, teacher: nn.Module, scores: bool) -> None:
        self.loss = loss
        self.teacher = teacher.eval().requires_grad_(False)
        self.scores = scores
        self._parts: list[torch.Tensor] = []
        self._handle = student.register_forward_hook(self._compare, with_kwargs=True)

    def close(self) -> None:
        """Stop watching the student."""
        self._handle.remove()

    def __call__(self, model: Any, batch: Any) -> Mapping[str, Any]:
        parts = dict(loss_parts(self.loss(model, batch)))
        if self._parts:  # the hook's, of the call before
            parts["distillation"] = WEIGHT * self._parts.pop()
        return parts

    def _compare(self, module: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        import torch

        if not module.training or not torch.is_grad_enabled():
            return
        with torch.no_grad():
            wanted = list(tensors_in(self.teacher(*args, **kwargs)))
        found = list(tensors_in(outputs))
        if len(found) != len(wanted):
            return
        parts = [
            _divergence(one, other) if self.scores and one.ndim >= 2 else _distance(one, other)
            for one, other in zip(found, wanted, strict=True)
            if one.shape == other.shape and one.is_floating_point() and one.requires_grad
        ]
        if parts:
            self._parts = [sum(parts[1:], parts[0]) / len(parts)]


def _divergence(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    rows = found.shape[0] * found[0, 0].numel()
    total = functional.kl_div(
        functional.log_softmax(found.float() / TEMPERATURE, 1),
        functional.log_softmax(wanted.float() / TEMPERATURE, 1),
        reduction="sum",
        log_target=True,
    )
    return total * (TEMPERATURE**2 / rows)


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    spread = wanted.float().var(unbiased=False).clamp_min(1e-6)
    return functional.mse_loss(found.float(), wanted.float()) / spread
