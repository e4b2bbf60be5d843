"""The core's update rules through PyTorch's kernels, on flat weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.spec.sections import OptimizerSpec
from hvdtrain.core.update.buckets import Bucket


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
        self._spec, self._buckets = spec, buckets
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

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the moments as `WEIGHT.exp_avg`, in the Hugging Face layout."""
        found = {}
        for bucket, pieces in zip(self._buckets, self._pieces, strict=True):
            for moment in MOMENTS[self._spec.type]:
                states = ((piece, self._optimizer.state.get(piece, {}).get(moment)) for piece in pieces)
                flat = torch.cat([torch.zeros_like(piece) if m is None else m for piece, m in states])
                for weight, part in zip(bucket.weights, flat.detach().split(bucket.sizes), strict=True):
                    found[f"{weight.name}.{moment}"] = part.reshape(weight.shape).cpu().numpy().copy()
        return found

    def write(self, arrays: Mapping[str, np.ndarray], updates: int) -> None:
        """Set what `read` read, after so many updates."""
        for bucket, pieces in zip(self._buckets, self._pieces, strict=True):
            sizes = [piece.numel() for piece in pieces]
            for moment in MOMENTS[self._spec.type]:
                flat = np.concatenate([arrays[f"{w.name}.{moment}"].ravel() for w in bucket.weights])
                for piece, part in zip(pieces, torch.from_numpy(flat).split(sizes), strict=True):
                    state = self._optimizer.state[piece]
                    state[moment] = part.to(piece.device, piece.dtype, copy=True)
                    # AdamW's count, of the dtype and at the place that its fused kernel wants.
                    state["step"] = torch.tensor(float(updates), device=piece.device)

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
