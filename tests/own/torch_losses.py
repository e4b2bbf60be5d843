"""Losses and metrics of a user's in PyTorch; `keras_losses.py` has their twins."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

Batch = dict[str, torch.Tensor]


def each(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """A loss for each example."""
    return functional.cross_entropy(outputs, batch["labels"], reduction="none")


def pair(outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """A sum and what it weighs, which only the batch says; some examples weigh nothing."""
    weights = batch["count"].to(outputs.dtype)
    return each(outputs, batch) @ weights, weights.sum()


def near(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """A metric: whether the right class is among the best two."""
    return (outputs.topk(2).indices == batch["labels"][:, None]).any(1).to(outputs.dtype)


def weighed(outputs: Any, batch: Batch) -> Any:
    """A metric with a weight."""
    right = (outputs.argmax(1) == batch["labels"]).to(outputs.dtype)
    return right @ batch["count"].to(outputs.dtype), batch["count"].sum()
