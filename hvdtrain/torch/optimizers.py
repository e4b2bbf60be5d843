"""The core's update rules through PyTorch's kernels, on flat weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.sections import OptimizerSpec


class Optimizer:
    """AdamW or SGD with momentum; weights become views into flat tensors laid out as the gradient buckets."""

    def __init__(
        self, spec: OptimizerSpec, buckets: Sequence[Bucket], parameters: Mapping[str, torch.nn.Parameter]
    ) -> None:
        """Move every weight into its flat tensor.

        Args:
            spec: the update rule.
            buckets: the plan's layout.
            parameters: by weight name.
        """
        self._pieces: list[list[torch.nn.Parameter]] = []
        self._flats = [_flat_weights(bucket, parameters) for bucket in buckets]
        decayed, plain = [], []
        for bucket, flat in zip(buckets, self._flats, strict=True):
            pieces = [
                torch.nn.Parameter(part)
                for part in flat.split([bucket.decay_size, bucket.size - bucket.decay_size])
            ]
            self._pieces.append(pieces)
            decayed.append(pieces[0])
            plain.append(pieces[1])
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self._optimizer = _make(spec, groups)

    def apply(self, gradients: Sequence[torch.Tensor], learning_rate: float, update: int) -> None:
        """One update of every weight.

        Args:
            gradients: flat, one a bucket, clipped.
            learning_rate: of this update.
            update: its number, counted from 1.
        """
        del update  # torch's optimizers count for themselves
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        for pieces, gradient in zip(self._pieces, gradients, strict=True):
            for piece, part in zip(pieces, gradient.split([p.numel() for p in pieces]), strict=True):
                piece.grad = part
        self._optimizer.step()

    def read_weights(self) -> list[torch.Tensor]:
        """The weights themselves, flat, one tensor a bucket."""
        return self._flats

    def write_weights(self, weights: Sequence[torch.Tensor]) -> None:
        """Set every weight.

        Args:
            weights: flat, one a bucket.
        """
        for flat, given in zip(self._flats, weights, strict=True):
            if given is not flat:
                flat.copy_(given)


def _make(spec: OptimizerSpec, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if spec.type == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=spec.learning_rate,
            betas=(spec.adam_beta1, spec.adam_beta2),
            eps=spec.adam_epsilon,
            weight_decay=spec.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        groups,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def _flat_weights(bucket: Bucket, parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor:
    flat = torch.cat([parameters[w.name].detach().reshape(-1) for w in bucket.weights])
    for weight, part in zip(bucket.weights, flat.split(bucket.sizes), strict=True):
        parameters[weight.name].data = part.view(weight.shape)
    return flat
