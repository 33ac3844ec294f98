"""A network that predicts the next character of a text."""

from __future__ import annotations

import torch
from torch import nn


class CharLSTM(nn.Module):
    """LSTMs over the characters of a text (Graves, 2013, arXiv:1308.0850).

    Takes int64 tokens ``(batch, length)``; returns logits of the token that comes after each,
    ``(batch, length, tokens)``. Every call begins with an empty memory.

    Args:
        tokens: size of the vocabulary; tokens are below it.
        dim: channels of an embedding.
        hidden: channels of an LSTM.
        layers: LSTMs one on top of the other.
        dropout: share of the channels between them, and after the last, that training leaves out.
    """

    def __init__(self, tokens: int, dim: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dim)
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(dim, hidden, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.lstm(self.embedding(tokens))
        return self.head(self.dropout(outputs))


def char_lstm(
    tokens: int, *, dim: int = 32, hidden: int = 128, layers: int = 1, dropout: float = 0.0
) -> CharLSTM:
    """Build a :class:`CharLSTM`, for texts of any length."""
    return CharLSTM(tokens, dim, hidden, layers, dropout)
