"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ...errors import UsageError
from .sizes import is_small


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017, arXiv:1706.03762).

    Takes and returns ``(batch, tokens, dim)``. The number of heads follows from the width of the
    projections and ``head_dim``.

    Attributes:
        head_dim: channels of one head.
        qkv: the fused projection to queries, keys and values, one after another; or, when they
            are separate, ``q``, ``k`` and ``v``.
        proj: the projection of the heads' outputs.
    """

    def __init__(self, dim: int, heads: int, fused_qkv: bool = True) -> None:
        super().__init__()
        self.head_dim = dim // heads
        if fused_qkv:
            self.qkv = nn.Linear(dim, 3 * dim)
        else:
            self.q = nn.Linear(dim, dim)
            self.k = nn.Linear(dim, dim)
            self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Let each token look at all, or at those where ``mask`` is true.

        Args:
            x: ``(batch, tokens, dim)``.
            mask: of a shape that broadcasts to ``(batch, heads, tokens, tokens)``; the last is
                what is looked at.
        """
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = self._split(q), self._split(k), self._split(v)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, heads, tokens, head_dim)``."""
        return x.reshape(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)


class Layer(nn.Module):
    """A layer of the encoder: attention and a perceptron, each normalised before and added."""

    def __init__(self, dim: int, heads: int, hidden: int, fused_qkv: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, fused_qkv)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """ViT (Dosovitskiy et al., 2020, arXiv:2010.11929), classified by its class token.

    Takes float32 images ``(batch, channels, image_size, image_size)``; returns logits
    ``(batch, classes)``.

    Args:
        image_size: a multiple of ``patch``.
        patch: pixels of the side of a patch.
        dim: channels of a token.
        depth: layers of the encoder.
        heads: heads of each; they divide ``dim``.
        hidden: width of the hidden layer of each perceptron.
        fused_qkv: queries, keys and values come from one linear layer, or from three.

    Attributes:
        head_dim: channels of one head.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        image_size: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        fused_qkv: bool = True,
    ) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2 + 1, dim))
        layers = (Layer(dim, heads, hidden, fused_qkv) for _ in range(depth))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.layers(x + self.positions)
        return self.head(self.norm(x[:, 0]))


def vit(
    classes: int,
    channels: int,
    image_size: int,
    *,
    patch: int | None = None,
    dim: int = 192,
    depth: int = 6,
    heads: int = 3,
    hidden: int | None = None,
    fused_qkv: bool = True,
) -> VisionTransformer:
    """Build a ViT, by default of the width of ViT-Tiny and half its depth.

    Args:
        patch: by default 16, up to 64 pixels 4, and up to 8 pixels 2.
        hidden: by default four times ``dim``.

    Raises:
        UsageError: the patches do not divide the image, or the heads the channels.
    """
    if patch is None:
        patch = 2 if image_size <= 8 else 4 if is_small(image_size, None) else 16
    for name, part, whole in (("patch", patch, image_size), ("heads", heads, dim)):
        if part < 1 or whole % part:
            raise UsageError(f"vit: {name}: found {part}; expected a divisor of {whole}")
    hidden = 4 * dim if hidden is None else hidden
    return VisionTransformer(
        classes, channels, image_size, patch, dim, depth, heads, hidden, fused_qkv
    )
