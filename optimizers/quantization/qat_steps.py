"""Integer weights with learned step sizes: what training sees in place of a float weight.

Esser et al., 2020, "Learned Step Size Quantization", arXiv:1902.08153, with one step a channel, and
a range that is symmetric: a BatchNorm with a negative scale, folded into the layer afterwards,
turns the signs of a channel's integers, and they have to stay in range.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    Array = np.ndarray[Any, Any]

_MANY = 64
_GRID = np.geomspace(0.1, 1.0, 40, dtype=np.float32)
_ITERATIONS = 20
_SMALLEST = 1e-12
"""Lower bound of a step, far below that of any channel: nothing is divided by 0."""


def largest_integer(bits: int, reduce_range: bool = False) -> int:
    """Return the largest magnitude of an integer weight: 1, 7 or 127 (64 in a reduced range)."""
    return 64 if bits == 8 and reduce_range else int(2 ** (bits - 1) - 1)


def learned_steps(weight: torch.Tensor, limit: int, channel_axis: int) -> nn.Module:
    """Return a module from a weight to its nearest integers times their steps.

    It is a parametrization for ``torch.nn.utils.parametrize``. Backwards, as in equations 3 and 5
    of the paper, a weight within the range gets the gradient as it is (straight-through), one
    beyond it none; the gradient of a step is scaled by ``1 / sqrt(weights * limit)``, with the
    weights of one step.

    Args:
        weight: float32; its steps begin with the least squared error.
        limit: the largest magnitude of an integer.
        channel_axis: the axis with one step an element.

    Returns:
        a module with the parameter ``step``, (channels,), and the method ``integers(weight)``,
        which returns int8 of the shape of the weight and the positive steps, (channels,).
    """
    made: nn.Module = _classes()(weight, limit, channel_axis)
    return made


def first_steps(weight: Array, limit: int, channel_axis: int) -> Array:
    """Return steps of the least squared error in a symmetric range, float32 (channels,).

    Of many integers (8 bits) the largest one becomes the largest weight; of few, the steps are the
    best of a grid, then Lloyd's iteration: by turns the best integers for the steps, and the best
    steps for the integers.
    """
    rows = np.moveaxis(weight, channel_axis, 0).reshape(weight.shape[channel_axis], -1)
    largest = np.abs(rows).max(1)
    # A channel of zeros: any step does.
    full = np.where(largest > _SMALLEST, largest / limit, 1).astype(np.float32)
    if limit >= _MANY:
        return full

    def rounded(steps: Array) -> Array:
        return np.clip(np.rint(rows / steps[:, None]), -limit, limit)

    errors = []
    for factor in _GRID:
        steps = full * factor
        errors.append(np.square(rounded(steps) * steps[:, None] - rows).sum(1))
    steps = full * _GRID[np.argmin(errors, axis=0)]
    for _ in range(_ITERATIONS):
        values = rounded(steps)
        products = np.einsum("ij,ij->i", rows, values)
        energy = np.einsum("ij,ij->i", values, values)
        steps = np.where(products > 0, products / np.maximum(energy, 1), steps)
    return steps.astype(np.float32)


@cache
def _classes() -> Any:
    import torch
    from torch import nn

    class RoundToSteps(torch.autograd.Function):
        """Rounds to steps; the straight-through gradient."""

        @staticmethod
        def forward(
            ctx: Any, weight: torch.Tensor, step: torch.Tensor, limit: int, factor: float
        ) -> torch.Tensor:
            scaled = weight / step
            ctx.save_for_backward(scaled)
            ctx.limit, ctx.factor, ctx.shape = limit, factor, step.shape
            return scaled.clamp(-limit, limit).round_() * step

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
            (scaled,) = ctx.saved_tensors
            (gradient,) = gradients
            inside = scaled.abs() <= ctx.limit
            by_step = torch.where(inside, scaled.round() - scaled, scaled.sign() * ctx.limit)
            step = (gradient * by_step).sum_to_size(ctx.shape) * ctx.factor
            return gradient * inside, step, None, None

    class LearnedSteps(nn.Module):
        """See :func:`learned_steps`."""

        def __init__(self, weight: torch.Tensor, limit: int, channel_axis: int) -> None:
            super().__init__()
            self.limit, self.channel_axis = limit, channel_axis
            self.shape = [1] * weight.dim()
            self.shape[channel_axis] = -1
            channels = weight.shape[channel_axis]
            self.factor = 1 / math.sqrt(weight.numel() / channels * self.limit)
            first = first_steps(weight.detach().cpu().numpy(), limit, channel_axis)
            self.step = nn.Parameter(
                torch.from_numpy(first).to(weight.device), requires_grad=weight.requires_grad
            )

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = RoundToSteps.apply(
                weight, self.positive().view(self.shape), self.limit, self.factor
            )
            return found

        def positive(self) -> torch.Tensor:
            # An optimizer may step past 0; integers and magnitude stay those of a step.
            return self.step.abs().clamp_min(_SMALLEST)

        def integers(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            steps = self.positive().detach()
            scaled = weight.detach() / steps.view(self.shape)
            return scaled.clamp_(-self.limit, self.limit).round_().to(torch.int8), steps

    return LearnedSteps


def round_inputs(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Round the first input of a module to uint8 between its extremes: a forward pre-hook.

    The range is that of the batch, 0 included, with a straight-through gradient, as in Jacob et
    al., 2018, arXiv:1712.05877, section 3; the range that ships is calibrated after training.
    """
    import torch

    if not args or not isinstance(args[0], torch.Tensor) or not args[0].is_floating_point():
        return args
    values = args[0]
    low, high = values.detach().float().aminmax()
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = ((high - low) / 255).clamp_min(_SMALLEST)
    zero = (-low / scale).round().to(torch.int32)
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, 255)
    return (rounded.to(values.dtype), *args[1:])
