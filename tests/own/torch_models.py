"""Models of a user's in PyTorch; `keras_models.py` has their twins under the same names."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn import functional

from hvdtrain.core.process.environment import launched_rank
from tests.jobs.runs import ROOT

sys.path.append(str(ROOT / "examples" / "own_model"))
from cnn_torch import CNN

__all__ = ["CNN"]


class Scores(nn.Module):
    """A linear map, tanh, and a linear map."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class Value(Scores):
    """One number for each example, (rows,)."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, 0]


class Fixed(Scores):
    """As scores, with the same first values in every run."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=draw)


class Dropped(Fixed):
    """With dropout as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.dropout(torch.tanh(self.first(x)), 0.2, self.training))


class Tags(nn.Module):
    """Scores of each token of a sequence, (rows, length, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embedding(ids)))


class Normed(nn.Module):
    """A frozen map, a trained one, a batch norm and a head; ranks start from statistics of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6)
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8, eps=1e-3)
        self.head = nn.Linear(8, 3)
        self.frozen.requires_grad_(False)
        nn.init.constant_(self.norm.running_mean, 0.5 * (launched_rank() or 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.first(self.frozen(x)))))
