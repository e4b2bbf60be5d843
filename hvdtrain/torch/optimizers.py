"""The core's update rules through PyTorch's kernels, on flat weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.groups import Setting
from hvdtrain.core.update.shards import Shard, scratch_elements
from hvdtrain.torch.flat_weights import HeldWeights
from hvdtrain.torch.shards import ShardExchange
from hvdtrain.torch.update_rules import Norms, build_rule, empty_group
from hvdtrain.torch.weights import host_copy


class Optimizer:
    """The spec's update rule, on flat weights; where buckets are sharded, on this rank's shards alone."""

    def __init__(
        self,
        spec: OptimizerSpec,
        shards: Sequence[Shard],
        weights: HeldWeights,
        exchange: ShardExchange | None = None,
    ) -> None:
        """Start without moments.

        Args:
            spec: the update rule.
            shards: what this rank owns of each bucket of the plan.
            weights: hold what it updates.
            exchange: with the ranks that own the rest; None: nobody does.
        """
        self._spec, self._shards, self._weights, self._exchange = spec, shards, weights, exchange
        self._pieces: list[list[torch.nn.Parameter]] = []
        groups: dict[Setting, dict[str, Any]] = {}
        for shard, flat in zip(shards, weights.own, strict=True):
            own: list[torch.nn.Parameter] = []
            for each in shard.pieces(spec):
                first = each.start - shard.start
                own.append(torch.nn.Parameter(flat[first : first + each.size]))
                group = groups.setdefault(each.setting, empty_group(each.setting))
                group["params"].append(own[-1])
                group["parts"].append(each.parts)
            self._pieces.append(own)
        norms = Norms(spec, shards, exchange, weights.own[0])
        scratch = weights.own[0].new_empty(scratch_elements(spec, shards))
        self._optimizer = build_rule(spec, [*groups.values()], norms, scratch)

    def norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """The global L2 norm, a scalar.

        Args:
            gradients: flat, one a bucket: (shard.size,).
        """
        if self._exchange is None:
            return torch.stack([gradient.norm() for gradient in gradients]).norm()
        squares = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum()
        return self._exchange.sum(squares, "norm").sqrt()

    def apply(self, gradients: Sequence[torch.Tensor], learning_rate: float, update: int) -> None:
        """One update of every weight.

        Args:
            gradients: flat, one a bucket, clipped: (shard.size,).
            learning_rate: of this update.
            update: its number, counted from 1.
        """
        del update  # torch's optimizers count for themselves
        self._weights.settle()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        for pieces, gradient in zip(self._pieces, gradients, strict=True):
            sizes = [piece.numel() for piece in pieces]
            for piece, part in zip(pieces, gradient[: sum(sizes)].split(sizes), strict=True):
                piece.grad = part
        self._optimizer.step()
        # Or the gradients would stay in memory beside the next update's.
        self._optimizer.zero_grad(set_to_none=True)
        self._weights.send()

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """The moments as `WEIGHT.exp_avg`, one at a time, in the Hugging Face layout.

        Where buckets are sharded, every rank goes through all of them.
        """
        for shard, pieces in zip(self._shards, self._pieces, strict=True):
            for moment in MOMENTS[self._spec.type]:
                yield from self._read(shard, pieces, moment)

    def write(self, arrays: Iterable[tuple[str, np.ndarray]], updates: int) -> None:
        """Set what `read` yields, in its order, after so many updates."""
        given = iter(arrays)
        for shard, pieces in zip(self._shards, self._pieces, strict=True):
            sizes = [piece.numel() for piece in pieces]
            for moment in MOMENTS[self._spec.type]:
                own = torch.from_numpy(shard.take(moment, given)[: sum(sizes)])
                for piece, part in zip(pieces, own.split(sizes), strict=True):
                    state = self._optimizer.state[piece]
                    state[moment] = part.to(piece.device, piece.dtype, copy=True)
                    # Adam's count, of the dtype and at the place that its fused kernel wants.
                    state["step"] = torch.tensor(float(updates), device=piece.device)

    @property
    def wire_bytes(self) -> int:
        """Bytes of weights that this rank has handed to collectives so far."""
        return 0 if self._exchange is None else self._exchange.wire_bytes

    def _read(
        self, shard: Shard, pieces: Sequence[torch.nn.Parameter], moment: str
    ) -> Iterator[tuple[str, np.ndarray]]:
        flat = self._whole(shard, [self._moment(piece, moment) for piece in pieces])
        flat = host_copy(flat) if flat.is_cuda else flat
        for weight, part in zip(shard.bucket.weights, flat.split(shard.bucket.sizes), strict=True):
            yield f"{weight.name}.{moment}", part.reshape(weight.shape).numpy()

    def _moment(self, piece: torch.nn.Parameter, moment: str) -> torch.Tensor:
        found = self._optimizer.state.get(piece, {}).get(moment)
        return (torch.zeros_like(piece) if found is None else found).detach()

    def _whole(self, shard: Shard, own: Sequence[torch.Tensor]) -> torch.Tensor:
        """All of a bucket, of which this rank has these parts."""
        padding = self._weights.own[0].new_zeros(shard.size - sum(part.numel() for part in own))
        flat = torch.cat([*own, padding])
        if self._exchange is not None:
            flat = self._exchange.gather(shard, flat, "moments")
        return flat[: shard.bucket.size]
