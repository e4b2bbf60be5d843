"""The core's update rules through PyTorch's kernels, on flat weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.adamw import adamw

from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.groups import Setting, scratch_elements, slices_of
from hvdtrain.core.update.optimizers import trust_ratio


class Optimizer:
    """The spec's update rule; weights become views into flat tensors laid out as the gradient buckets."""

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
        groups: dict[Setting, dict[str, Any]] = {}
        for bucket, flat in zip(buckets, self._flats, strict=True):
            slices = slices_of(spec, bucket)
            pieces = [torch.nn.Parameter(part) for part in flat.split([each.size for each in slices])]
            self._pieces.append(pieces)
            for each, piece in zip(slices, pieces, strict=True):
                group = groups.setdefault(each.setting, _group(each.setting))
                group["params"].append(piece)
                group["sizes"].append(each.sizes)
        scratch = self._flats[0].new_empty(scratch_elements(spec, buckets))
        self._optimizer = _make(spec, [*groups.values()], scratch)

    def apply(self, gradients: Sequence[torch.Tensor], learning_rate: float, update: int) -> None:
        """One update of every weight.

        Args:
            gradients: flat, one a bucket, clipped.
            learning_rate: of this update.
            update: its number, counted from 1.
        """
        del update  # torch's optimizers count for themselves
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
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
                    # Adam's count, of the dtype and at the place that its fused kernel wants.
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


def _make(spec: OptimizerSpec, groups: list[dict[str, Any]], scratch: torch.Tensor) -> torch.optim.Optimizer:
    if spec.type == "lamb":
        return _Lamb(groups, spec, scratch)
    if spec.type == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=spec.learning_rate,
            betas=(spec.adam_beta1, spec.adam_beta2),
            eps=spec.adam_epsilon,
            fused=True,
        )
    momentum = {"momentum": spec.momentum, "nesterov": spec.nesterov, "fused": True}
    if spec.type == "lars":
        return _Lars(groups, spec.trust_coefficient, lr=spec.learning_rate, **momentum)
    return torch.optim.SGD(groups, lr=spec.learning_rate, **momentum)


def _group(setting: Setting) -> dict[str, Any]:
    """A parameter group of torch's, still empty: `sizes` are those of each parameter's weights."""
    return {
        "params": [],
        "sizes": [],
        "weight_decay": setting.weight_decay,
        "factor": setting.learning_rate_factor,
        "adapts": setting.adapts,
    }


class _Lamb(torch.optim.Optimizer):
    """The core's LAMB on flat parameters, with state as torch's AdamW has."""

    def __init__(self, groups: list[dict[str, Any]], spec: OptimizerSpec, scratch: torch.Tensor) -> None:
        super().__init__(groups, {"lr": spec.learning_rate})
        self._spec = spec
        # Kept: new memory costs more than all that is computed in it.
        self._scratch = scratch

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        del closure
        for group in self.param_groups:
            for weights, sizes in zip(group["params"], group["sizes"], strict=True):
                step = self._adam(weights)
                if group["weight_decay"]:
                    step.sub_(weights, alpha=group["weight_decay"])
                if not group["adapts"]:
                    weights.add_(step, alpha=group["lr"])
                    continue
                parts, moves = weights.split(sizes), step.split(sizes)
                for part, move, ratio in zip(parts, moves, _ratios(parts, moves), strict=True):
                    part.addcmul_(move, ratio, value=group["lr"])

    def _adam(self, weights: torch.Tensor) -> torch.Tensor:
        """Adam's direction downwards: where its fused kernel moves zeros at a learning rate of 1."""
        spec, state, step = self._spec, self.state[weights], self._scratch[: weights.numel()].zero_()
        if not state:
            state["step"] = torch.zeros((), device=weights.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weights), torch.zeros_like(weights)
        adamw(
            [step],
            [weights.grad],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=spec.adam_beta1,
            beta2=spec.adam_beta2,
            lr=1.0,
            weight_decay=0.0,
            eps=spec.adam_epsilon,
            maximize=False,
        )
        return step


class _Lars(torch.optim.SGD):
    """The core's LARS on flat parameters: SGD whose gradients have been scaled."""

    def __init__(self, groups: list[dict[str, Any]], coefficient: float, **settings: Any) -> None:
        for group in groups:
            # What is scaled is the sum of gradient and decay.
            group["decay"] = group["weight_decay"]
            group["weight_decay"] = 0.0 if group["adapts"] else group["decay"]
        super().__init__(groups, **settings)
        self._coefficient = coefficient

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in (group for group in self.param_groups if group["adapts"]):
            for weights, sizes in zip(group["params"], group["sizes"], strict=True):
                parts, gradients = weights.split(sizes), weights.grad.split(sizes)
                ratios = _ratios(parts, gradients, group["decay"], self._coefficient)
                weights.grad.add_(weights, alpha=group["decay"])
                for gradient, ratio in zip(gradients, ratios, strict=True):
                    gradient.mul_(ratio)
        super().step(closure)


def _ratios(
    weights: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    decay: float = 0.0,
    coefficient: float = 1.0,
) -> Sequence[torch.Tensor]:
    """The trust ratio of each weight, a scalar: of its step's norm and a share of its own."""
    own, moved = (torch.stack(torch._foreach_norm(list(arrays))) for arrays in (weights, steps))
    return trust_ratio(own, moved + decay * own, torch.where, coefficient).unbind()


def _flat_weights(bucket: Bucket, parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor:
    flat = torch.cat([parameters[w.name].detach().reshape(-1) for w in bucket.weights])
    for weight, part in zip(bucket.weights, flat.split(bucket.sizes), strict=True):
        parameters[weight.name].data = part.view(weight.shape)
    return flat
