"""Networks that classify texts: a bidirectional LSTM, and a small Transformer.

Both take int64 tokens ``(batch, length)``, of which 0 is padding, and return logits ``(batch,
classes)``. Padding has no part in the answer.
"""

from __future__ import annotations

import torch
from torch import nn

from ...errors import UsageError
from .vit import Layer

_KERNEL = 5
"""Tokens that the convolution of the Transformer sees, the middle one and its neighbours."""


def _masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over the tokens that are no padding.

    Args:
        x: ``(batch, length, dim)``.
        mask: true where a token stands, ``(batch, length)``.
    """
    weight = mask.unsqueeze(-1).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


class BidirectionalLSTM(nn.Module):
    """One LSTM that reads forwards and one that reads backwards (Graves, 2005).

    The second begins at the last token of each text, not at the end of its padding; so what it
    returns does not depend on how far a batch is padded. (``pack_padded_sequence`` does the same,
    and cannot be exported.)

    Takes ``(batch, length, inputs)`` and the number of tokens in each text, ``(batch, 1)``; returns
    ``(batch, length, 2 * hidden)``.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(inputs, hidden, batch_first=True)
        self.backwards = nn.LSTM(inputs, hidden, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        place = torch.arange(length, device=x.device)
        # Reverses the tokens of each text, and is its own inverse.
        mirror = ((lengths - 1 - place) % length).unsqueeze(-1)
        first, _ = self.forwards(x)
        second, _ = self.backwards(x.gather(1, mirror.expand(-1, -1, x.shape[2])))
        second = second.gather(1, mirror.expand(-1, -1, second.shape[2]))
        return torch.cat([first, second], -1)


class LSTMClassifier(nn.Module):
    """Bidirectional LSTMs (Hochreiter and Schmidhuber, 1997), averaged over the tokens.

    Args:
        tokens: size of the vocabulary; tokens are below it.
        classes: how many.
        dim: channels of an embedding.
        hidden: channels of each direction.
        layers: LSTMs one on top of the other.
        dropout: share of the embedding's, and of the averaged, channels that training leaves out.
    """

    def __init__(
        self, tokens: int, classes: int, dim: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        inputs = [dim, *[2 * hidden] * (layers - 1)]
        self.layers = nn.ModuleList(BidirectionalLSTM(count, hidden) for count in inputs)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = tokens != 0
        lengths = mask.sum(1, keepdim=True)
        x = self.dropout(self.embedding(tokens))
        for layer in self.layers:
            x = layer(x, lengths)
        return self.head(self.dropout(_masked_mean(x, mask)))


class TransformerClassifier(nn.Module):
    """The encoder of Vaswani et al. (2017, arXiv:1706.03762), normalised before each layer.

    A convolution comes first, as in the compact transformers of Hassani et al. (2021,
    arXiv:2104.05704): it tells a token its neighbours, which attention learns only from much data.
    Positions are learned. The layers are those of the zoo's vision transformer.

    Args:
        tokens: size of the vocabulary; tokens are below it.
        classes: how many.
        length: the largest number of tokens in a text.
        dim: channels of a token.
        depth: layers.
        heads: heads of each; they divide ``dim``.
        dropout: share of the embedding's channels that training leaves out.
    """

    def __init__(
        self,
        tokens: int,
        classes: int,
        length: int,
        dim: int,
        depth: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dim, padding_idx=0)
        self.positions = nn.Parameter(torch.zeros(1, length, dim))
        self.dropout = nn.Dropout(dropout)
        self.neighbours = nn.Conv1d(dim, dim, _KERNEL, padding=_KERNEL // 2)
        self.layers = nn.ModuleList(Layer(dim, heads, 4 * dim, True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        # Of one size, so that attention heeds where a token stands as well as what it is.
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[0] = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = tokens != 0
        # A text has a first token; where it has none, attention would be over nothing.
        seen = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], 1)[:, None, None]
        x = self.embedding(tokens) + self.positions[:, : tokens.shape[1]]
        x = self.dropout(x) * mask.unsqueeze(-1).to(x.dtype)  # the convolution sees no padding
        x = x + self.neighbours(x.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, seen)
        return self.head(_masked_mean(self.norm(x), mask))


def lstm_classifier(
    tokens: int,
    classes: int,
    *,
    dim: int = 32,
    hidden: int = 32,
    layers: int = 1,
    dropout: float = 0.2,
) -> LSTMClassifier:
    """Build an :class:`LSTMClassifier`, for texts of any length."""
    return LSTMClassifier(tokens, classes, dim, hidden, layers, dropout)


def transformer_classifier(
    tokens: int,
    classes: int,
    length: int,
    *,
    dim: int = 64,
    depth: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
) -> TransformerClassifier:
    """Build a :class:`TransformerClassifier`, for texts of up to ``length`` tokens.

    Raises:
        UsageError: the heads do not divide the channels.
    """
    if heads < 1 or dim % heads:
        raise UsageError(
            f"transformer_classifier: heads: found {heads}; expected a divisor of {dim}"
        )
    return TransformerClassifier(tokens, classes, length, dim, depth, heads, dropout)
