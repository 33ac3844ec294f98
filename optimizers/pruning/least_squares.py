"""Least squares for one layer: what it takes, and the weights that give what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RIDGES = (0.01, 0.1, 1.0)
"""How strongly the old weights draw, as parts of the mean square of the inputs."""
_EXACT = 1e-10


@dataclass(frozen=True)
class Fit:
    """Weights that were found.

    Attributes:
        weight: (outputs, columns).
        bias: (outputs,); zeros where the layer has none.
        errors: the squared error of the held-out rows, relative to their variance, before and
            after.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    errors: tuple[float, float]


def fit_ridge(
    inputs: torch.Tensor,
    wanted: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    fitting: int,
    is_normalised: bool = False,
) -> Fit | None:
    """Fit the weights of a layer, with a ridge that draws to those that it has.

    Minimises ``|inputs @ weight.T + bias - wanted|**2 + ridge * |weight - old|**2``. Of several
    ridges, the one with the smallest error on the held-out rows is taken.

    Args:
        inputs: (rows, columns), float32.
        wanted: (rows, outputs), float32.
        weight: (outputs, columns), what the layer has.
        bias: (outputs,), likewise, or None.
        fitting: the first so many rows are fitted, the others are held out.
        is_normalised: a BatchNorm comes next: the means of the outputs do not matter.

    Returns:
        None when no fit is better than what the layer has.
    """
    import torch

    x, y = inputs[:fitting], wanted[:fitting]
    held_x, held_y = inputs[fitting:], wanted[fitting:]
    mean_x, mean_y = x.mean(0), y.mean(0)
    has_offset = bias is not None or is_normalised

    def error(weights: torch.Tensor, offset: torch.Tensor) -> float:
        missing = held_y - held_x @ weights.T - offset
        if is_normalised:
            missing = missing - missing.mean(0)
        return float(missing.square().sum())

    zeros = torch.zeros_like(mean_y)
    size = float((held_y - held_y.mean(0)).square().sum()) or 1.0
    first = error(weight, zeros if bias is None else bias)
    if has_offset:
        x, y = x - mean_x, y - mean_y
    gram = (x.T @ x).double()
    moment = (x.T @ (y - x @ weight.T)).double()
    level = gram.diagonal().mean()
    if not torch.isfinite(level) or level <= 0 or first <= _EXACT * size:
        return None
    best: tuple[float, torch.Tensor, torch.Tensor] | None = None
    for ridge in RIDGES:
        system = gram.clone()
        system.diagonal().add_(ridge * level)
        factor, failed = torch.linalg.cholesky_ex(system)
        if int(failed):
            continue
        fitted = weight + torch.cholesky_solve(moment, factor).T.float()
        offset = mean_y - fitted @ mean_x if has_offset else zeros
        reached = error(fitted, offset)
        if reached < (first if best is None else best[0]):
            best = reached, fitted, offset
    if best is None:
        return None
    return Fit(best[1], best[2], (first / size, best[0] / size))


def patches(layer: Any, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return what the weights of a layer are multiplied with at some positions of its output.

    Args:
        layer: an ``nn.Linear``, or an ``nn.Conv2d`` of one group.
        x: its input, (..., features) or (samples, channels, height, width).
        rows: indices of positions: (samples, height, width) of the output as one dimension.

    Returns:
        (rows, weights of a filter).
    """
    import torch
    from torch.nn import functional

    if not hasattr(layer, "kernel_size"):
        return x.reshape(-1, x.shape[-1])[rows]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    height, width = (
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, dilation, kernel, stride in zip(
            padded.shape[2:], layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    )
    sample, place = rows // (height * width), rows % (height * width)
    starts = (place // width * layer.stride[0], place % width * layer.stride[1])
    down, across = (
        start[:, None] + torch.arange(kernel, device=x.device) * dilation
        for start, kernel, dilation in zip(starts, layer.kernel_size, layer.dilation, strict=True)
    )
    # With channels last, (rows, kernel height, kernel width, channels) is read in long pieces.
    by_place = padded.movedim(1, -1).contiguous()
    found = by_place[sample[:, None, None], down[:, :, None], across[:, None, :]]
    return found.movedim(-1, 1).flatten(1)
