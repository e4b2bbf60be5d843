"""Losses as weighted sums over predictions; the divisor is the loop's."""

from __future__ import annotations

import torch
from torch.nn import functional


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of cross-entropies, in nats.

    Args:
        logits: (..., classes).
        targets: the right classes, (...).
        weights: factor of each prediction's loss, (...).

    Returns:
        A scalar of the logits' dtype.
    """
    losses = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses @ weights.flatten().to(losses.dtype)
