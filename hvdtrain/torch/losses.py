"""Losses as weighted sums over predictions; the divisor is the loop's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hvdtrain.core.update.losses import chunks


def cross_entropy(
    logits: Callable[[torch.Tensor], torch.Tensor],
    classes: int,
    features: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    dtype: torch.dtype,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The weighted sum of cross-entropies, in nats.

    Where the logits of all predictions would be many, they are computed chunk by chunk, and again for the
    backward pass.

    Args:
        logits: the head, (..., features) -> (..., classes).
        classes: how many.
        features: what the head takes, (rows, predictions, features).
        targets: the right classes, (rows, predictions).
        weights: factor of each prediction's loss, (rows, predictions).
        dtype: in which softmax and sum are taken.
        label_smoothing: see `hvdtrain.core.update.losses.cross_entropy`.

    Returns:
        A scalar of that dtype.
    """

    def loss_sum(part: torch.Tensor, right: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        found = logits(part).flatten(0, -2).to(dtype)
        losses = each_cross_entropy(found, right.flatten(), label_smoothing)
        return losses @ factors.flatten().to(dtype)

    sizes = chunks(targets.numel(), classes)
    if len(sizes) == 1:
        return loss_sum(features, targets, weights)
    flat = features.flatten(0, -2), targets.flatten(), weights.flatten()
    parts = zip(*(array.split(sizes) for array in flat), strict=True)
    return torch.stack([checkpoint(loss_sum, *part, use_reentrant=False) for part in parts]).sum()


def each_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The core's `cross_entropy`, of tensors.

    Args:
        logits: (predictions, classes).
        targets: the right classes, (predictions,).
        label_smoothing: at least 0 and below 1.

    Returns:
        (predictions,).
    """
    return functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
