"""The core's update rules as PyTorch's optimizers of flat parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.adamw import adamw

from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.groups import Setting, setting_of
from hvdtrain.core.update.optimizers import trust_ratio
from hvdtrain.core.update.shards import Shard
from hvdtrain.torch.shards import ShardExchange


def build_rule(
    spec: OptimizerSpec, groups: list[dict[str, Any]], norms: Norms, scratch: torch.Tensor
) -> torch.optim.Optimizer:
    """PyTorch's optimizer for a spec's rule.

    Args:
        spec: the update rule.
        groups: of flat parameters; see `empty_group`.
        norms: of weights, for trust ratios.
        scratch: memory for LAMB's steps.
    """
    if spec.type == "lamb":
        return _Lamb(groups, spec, norms, scratch)
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
        return _Lars(groups, norms, spec.trust_coefficient, lr=spec.learning_rate, **momentum)
    return torch.optim.SGD(groups, lr=spec.learning_rate, **momentum)


def empty_group(setting: Setting) -> dict[str, Any]:
    """A parameter group of torch's, still empty: `parts` are each parameter's weights and their sizes."""
    return {
        "params": [],
        "parts": [],
        "weight_decay": setting.weight_decay,
        "factor": setting.learning_rate_factor,
        "adapts": setting.adapts,
    }


class Norms:
    """L2 norms of whole weights, of which this rank may have a part."""

    def __init__(
        self,
        spec: OptimizerSpec,
        shards: Sequence[Shard],
        exchange: ShardExchange | None,
        like: torch.Tensor,
    ) -> None:
        """Number the weights that have a trust ratio, on every rank alike.

        Args:
            spec: the update rule.
            shards: what this rank owns of each bucket.
            exchange: with the ranks that own the rest; None: nobody does.
            like: of the weights' dtype and device.
        """
        weights = [w for shard in shards for w in shard.bucket.weights if setting_of(spec, w).adapts]
        self._places = {weight.name: place for place, weight in enumerate(weights)}
        self._exchange, self._empty = exchange, like.new_empty(1, 0)

    @property
    def shared(self) -> bool:
        """Whether other ranks have parts: then all norms are taken at once."""
        return self._exchange is not None

    def __call__(
        self, parts: Sequence[tuple[Weight, int]], *arrays: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The norms of each of some arrays, (weights,).

        Args:
            parts: the weights; where they are shared, all that this rank has a part of.
            arrays: this rank's part of each weight, and of what there is for each weight beside it.
        """
        own = self._empty.expand(len(arrays), 0)
        if parts:
            own = torch.stack([torch.stack(torch._foreach_norm(list(each))) for each in arrays])
        if self._exchange is None:
            return list(own)
        squares = own.new_zeros(len(arrays), len(self._places), dtype=torch.float64)
        places = [self._places[weight.name] for weight, _ in parts]
        squares[:, places] = own.double().square()
        return list(self._exchange.sum(squares, "trust_ratios")[:, places].sqrt().to(own.dtype))


class _Lamb(torch.optim.Optimizer):
    """The core's LAMB on flat parameters, with state as torch's AdamW has."""

    def __init__(
        self, groups: list[dict[str, Any]], spec: OptimizerSpec, norms: Norms, scratch: torch.Tensor
    ) -> None:
        super().__init__(groups, {"lr": spec.learning_rate})
        self._spec, self._norms = spec, norms
        # Kept: new memory costs more than all that is computed in it.
        self._scratch = scratch

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        del closure
        every = [
            (group, weights, parts)
            for group in self.param_groups
            for weights, parts in zip(group["params"], group["parts"], strict=True)
        ]
        for chunk in [every] if self._norms.shared else [[each] for each in every]:
            self._take(chunk)

    def _take(self, chunk: list[tuple[dict[str, Any], torch.Tensor, Any]]) -> None:
        sizes, work = [weights.numel() for _, weights, _ in chunk], []
        room = self._scratch[: sum(sizes)].split(sizes) if sizes else ()
        for (group, weights, parts), scratch in zip(chunk, room, strict=True):
            step = self._adam(weights, scratch.zero_())
            if group["weight_decay"]:
                step.sub_(weights, alpha=group["weight_decay"])
            if group["adapts"]:
                each = [size for _, size in parts]
                found = zip(parts, weights.split(each), step.split(each), strict=True)
                work += [(part, *arrays, group["lr"]) for part, *arrays in found]
            else:
                weights.add_(step, alpha=group["lr"])
        if work or self._norms.shared:
            parts, own, moves, rates = zip(*work, strict=True) if work else ((), (), (), ())
            ratios = _ratios(self._norms, parts, own, moves)
            for part, move, ratio, rate in zip(own, moves, ratios, rates, strict=True):
                part.addcmul_(move, ratio, value=rate)

    def _adam(self, weights: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Adam's direction downwards: where its fused kernel moves these zeros at a learning rate of 1."""
        spec, state = self._spec, self.state[weights]
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

    def __init__(
        self, groups: list[dict[str, Any]], norms: Norms, coefficient: float, **settings: Any
    ) -> None:
        for group in groups:
            # What is scaled is the sum of gradient and decay.
            group["decay"] = group["weight_decay"]
            group["weight_decay"] = 0.0 if group["adapts"] else group["decay"]
        super().__init__(groups, **settings)
        self._norms, self._coefficient = norms, coefficient

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        adapting = [group for group in self.param_groups if group["adapts"]]
        work = []
        for group in adapting:
            for weights, parts in zip(group["params"], group["parts"], strict=True):
                sizes = [size for _, size in parts]
                found = zip(parts, weights.split(sizes), weights.grad.split(sizes), strict=True)
                work += [(part, *arrays, group["decay"]) for part, *arrays in found]
        if work or self._norms.shared:
            parts, own, gradients, decays = zip(*work, strict=True) if work else ((), (), (), ())
            ratios = _ratios(self._norms, parts, own, gradients, decays, self._coefficient)
            for group in adapting:
                for weights in group["params"]:
                    weights.grad.add_(weights, alpha=group["decay"])
            for gradient, ratio in zip(gradients, ratios, strict=True):
                gradient.mul_(ratio)
        super().step(closure)


def _ratios(
    norms: Norms,
    parts: Sequence[tuple[Weight, int]],
    weights: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    decays: Sequence[float] = (),
    coefficient: float = 1.0,
) -> Sequence[torch.Tensor]:
    """The trust ratio of each weight, a scalar: of its step's norm and a share of its own."""
    own, moved = norms(parts, weights, steps)
    decay = own.new_tensor(decays) if decays else 0.0
    return trust_ratio(own, moved + decay * own, torch.where, coefficient).unbind()
