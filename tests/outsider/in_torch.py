"""The linear map in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class Network:
    classes = 2

    def __init__(self, model: Any, compute_dtype: str) -> None:
        self._linear = torch.nn.Linear(model.width, 2, dtype=getattr(torch, model.dtype))
        self.parameters = {f"linear.{name}": p for name, p in self._linear.named_parameters()}

    def features(self, inputs: Mapping[str, torch.Tensor], training: bool) -> torch.Tensor:
        return inputs["x"].to(self._linear.weight.dtype)[:, None]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return self._linear(features)
