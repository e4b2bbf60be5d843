"""A recurrent language model in PyTorch."""

from __future__ import annotations

import torch
from torch import nn


class LanguageModel(nn.Module):
    """Predicts the byte behind each byte of a text."""

    def __init__(self, width: int = 128, symbols: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, symbols)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits, (rows, length, symbols), of bytes, (rows, length)."""
        states, _ = self.gru(self.embedding(input_ids))
        return self.head(states)
