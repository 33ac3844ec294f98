"""Which values of a layer belong to which channel, for every type of layer that can be pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHT_KINDS = ("conv", "depthwise", "linear", "attention", "embedding")
"""Layers whose weights are filters; the others follow them."""

NORMS_ACROSS_CHANNELS = ("layer_norm", "rms_norm", "group_norm")
"""Layers whose statistics are taken over channels, so that a channel of zeros is not none."""


@dataclass(frozen=True)
class Slot:
    """The values of one tensor, arranged by channel.

    Attributes:
        name: the tensor, from its layer (``weight``, ``out_proj.bias``).
        tensor: the parameter or buffer.
        arrange: gives a view (blocks, channels of a block, ...) of a tensor of this shape.
        restore: brings (blocks, kept channels of a block, ...) back into the tensor's layout.
    """

    name: str
    tensor: torch.Tensor
    arrange: Callable[[torch.Tensor], torch.Tensor]
    restore: Callable[[torch.Tensor], torch.Tensor]

    @property
    def view(self) -> torch.Tensor:
        """(blocks, channels of a block, ...), which shares the memory of the tensor."""
        return self.arrange(self.tensor.detach())

    def by_channel(self, tensor: torch.Tensor | None = None) -> torch.Tensor:
        """Return (channels, values of a channel) of this tensor, or of one like it (a gradient)."""
        view = self.view if tensor is None else self.arrange(tensor)
        return view.reshape(view.shape[0] * view.shape[1], -1)

    def zero(self, indices: Sequence[int]) -> None:
        """Set the values of some channels to 0, in the tensor itself."""
        view = self.view
        for index in indices:
            view[index // view.shape[1], index % view.shape[1]] = 0

    def select(self, kept: Sequence[int]) -> torch.Tensor:
        """Return the tensor with some channels only, equally many of each block.

        Raises:
            ValueError: some block keeps more than another one.
        """
        import torch

        view = self.view
        blocks, width = view.shape[:2]
        rows = [[index % width for index in kept if index // width == b] for b in range(blocks)]
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"{self.name}: found {[len(row) for row in rows]} channels by group")
        index = torch.tensor(rows, dtype=torch.long, device=view.device)
        block = torch.arange(blocks, device=view.device)[:, None]
        return self.restore(view[block, index]).contiguous().clone()


def kind_of(layer: nn.Module) -> str | None:
    """Return the kind of a layer, or None when its channels cannot be taken away."""
    from torch import nn

    if not all(name in layer._parameters for name in ("weight",) if hasattr(layer, name)):
        return None  # parametrized, or normalised by the older weight_norm and spectral_norm
    if any("parametrizations" in name for name, _ in layer.named_children()):
        return None
    if isinstance(layer, nn.modules.conv._ConvNd):
        return "depthwise" if 1 < layer.groups == layer.in_channels else "conv"
    if isinstance(layer, nn.MultiheadAttention):
        return "attention" if layer._qkv_same_embed_dim else None
    if isinstance(layer, nn.LayerNorm):
        return "layer_norm" if len(layer.normalized_shape) == 1 else None
    if hasattr(nn, "RMSNorm") and isinstance(layer, nn.RMSNorm):
        return "rms_norm" if len(layer.normalized_shape) == 1 else None
    for kind, types in (
        ("linear", nn.Linear),
        ("batch_norm", nn.modules.batchnorm._BatchNorm),
        ("instance_norm", nn.modules.instancenorm._InstanceNorm),
        ("group_norm", nn.GroupNorm),
        ("prelu", nn.PReLU),
        ("embedding", nn.Embedding),
    ):
        if isinstance(layer, types):
            return kind
    return None


def channels_of(layer: nn.Module, kind: str, side: str) -> int:
    """Return the number of channels that a layer takes (``in``) or returns (``out``)."""
    layer_: Any = layer
    if kind in ("conv", "depthwise"):
        return int(layer_.in_channels if side == "in" else layer_.out_channels)
    if kind == "linear":
        return int(layer_.in_features if side == "in" else layer_.out_features)
    if kind in ("layer_norm", "rms_norm"):
        return int(layer_.normalized_shape[-1])
    attribute = {
        "attention": "embed_dim",
        "group_norm": "num_channels",
        "prelu": "num_parameters",
        "embedding": "embedding_dim",
    }.get(kind, "num_features")
    return int(getattr(layer_, attribute))


def slots(layer: nn.Module, kind: str, side: str) -> Iterator[Slot]:
    """Yield the tensors of a layer that have values of single channels, one after another.

    A tensor whose rows and columns both belong to channels comes twice (attention). The tensor may
    be replaced by a smaller one before the next is asked for.
    """
    layer_: Any = layer
    if kind == "conv":
        if (side == "out") != layer_.transposed:
            yield _unflattened("weight", layer_.weight, layer_.groups)
        else:
            yield _inner("weight", layer_.weight, layer_.groups)
    elif kind == "depthwise":
        if (side == "in") == (layer_.transposed and layer_.in_channels != layer_.out_channels):
            yield along("weight", layer_.weight, 0)
    elif kind == "linear":
        yield along("weight", layer_.weight, 0 if side == "out" else 1)
    elif kind == "embedding":
        yield along("weight", layer_.weight, 1)
    elif kind == "attention":
        yield _thirds("in_proj_weight", layer_.in_proj_weight)
        yield along("in_proj_weight", layer_.in_proj_weight, 1)
        if layer_.in_proj_bias is not None:
            yield _thirds("in_proj_bias", layer_.in_proj_bias)
        yield along("out_proj.weight", layer_.out_proj.weight, 0)
        yield along("out_proj.weight", layer_.out_proj.weight, 1)
        if layer_.out_proj.bias is not None:
            yield along("out_proj.bias", layer_.out_proj.bias, 0)
        for name in ("bias_k", "bias_v"):
            if getattr(layer_, name) is not None:
                yield along(name, getattr(layer_, name), 2)
    else:
        for name in ("weight", "running_mean", "running_var"):
            if getattr(layer_, name, None) is not None:
                yield along(name, getattr(layer_, name), 0)
    if side == "out" and kind != "attention" and getattr(layer_, "bias", None) is not None:
        yield along("bias", layer_.bias, 0)


def along(name: str, tensor: torch.Tensor, dim: int) -> Slot:
    """Arrange a tensor whose channels are one dimension."""
    return Slot(
        name,
        tensor,
        lambda values: values.movedim(dim, 0).unsqueeze(0),
        lambda kept: kept.squeeze(0).movedim(0, dim),
    )


def _unflattened(name: str, tensor: torch.Tensor, blocks: int) -> Slot:
    return Slot(
        name,
        tensor,
        lambda values: values.unflatten(0, (blocks, -1)),
        lambda kept: kept.flatten(0, 1),
    )


def _inner(name: str, tensor: torch.Tensor, blocks: int) -> Slot:
    """Arrange the weights of a (grouped) convolution by what lies in their second dimension."""
    return Slot(
        name,
        tensor,
        lambda values: values.unflatten(0, (blocks, -1)).transpose(1, 2),
        lambda kept: kept.transpose(1, 2).flatten(0, 1),
    )


def _thirds(name: str, tensor: torch.Tensor) -> Slot:
    """Arrange the rows of queries, keys and values, which lie one after another."""
    return Slot(
        name,
        tensor,
        lambda values: values.unflatten(0, (3, -1)).movedim(1, 0).unsqueeze(0),
        lambda kept: kept.squeeze(0).movedim(0, 1).flatten(0, 1),
    )
