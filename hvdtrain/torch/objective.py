"""The named losses and metrics of a user's model in PyTorch, and their sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from hvdtrain.core.tasks.custom import TaskSpec
from hvdtrain.core.tasks.objective import Function, Objective
from hvdtrain.torch.losses import each_cross_entropy
from hvdtrain.torch.world import device


def build_objective(task: TaskSpec, dtype: torch.dtype) -> Objective:
    """The loss and the metrics of a task.

    Args:
        task: the section of the spec.
        dtype: in which losses are computed and summed.

    Raises:
        SpecError: a path cannot be imported.
    """
    return Objective(task, _Kernels(dtype))


class _Kernels:
    """See `Kernels` of `hvdtrain.core.tasks.objective`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.losses: Mapping[str, Function] = {
            "cross_entropy": _cross_entropy,
            "mse": _mse,
            "bce_with_logits": _bce_with_logits,
        }
        self.metrics: Mapping[str, Function] = {"accuracy": _accuracy}

    def read(self, tensor: torch.Tensor) -> np.ndarray:
        return tensor.cpu().numpy()

    def unlike(self, targets: torch.Tensor, value: int) -> torch.Tensor:
        return (targets != value).to(self._dtype)

    def classes(self, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        # PyTorch's cross-entropy takes one type of integers alone.
        return torch.where(weights > 0, targets.long(), 0)

    def sum_predictions(
        self, function: Function, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = weights.to(self._dtype)
        return function(logits.to(self._dtype), targets).flatten() @ weights.flatten(), weights.sum()

    def sum_examples(self, values: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        return values.to(self._dtype).sum(), torch.tensor(rows, dtype=self._dtype)

    def take_pair(self, total: Any, weight: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, weight = (torch.as_tensor(x, dtype=self._dtype, device=device()) for x in (total, weight))
        return total, weight.detach()


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    return each_cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing)


def _mse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets.to(outputs.dtype)).square()


def _bce_with_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")


def _accuracy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # Of the classes, the likeliest; of a single logit, whether it is above 0.
    one = logits.shape == targets.shape
    found = logits > 0 if one else logits.argmax(-1)
    return (found == targets.to(found.dtype)).to(logits.dtype)
