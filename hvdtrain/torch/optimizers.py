"""The core's update rules through PyTorch's kernels, on flat weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.groups import Setting
from hvdtrain.core.update.shards import Shard, scratch_elements
from hvdtrain.torch.shards import ShardExchange
from hvdtrain.torch.update_rules import Norms, build_rule, empty_group


class Optimizer:
    """The spec's update rule; weights become views into flat tensors laid out as the gradient buckets.

    Where buckets are sharded, a rank has the moments of its shards alone, updates the weights in them, and
    is sent the other ranks' weights.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        shards: Sequence[Shard],
        parameters: Mapping[str, torch.nn.Parameter],
        exchange: ShardExchange | None = None,
    ) -> None:
        """Move every weight into its flat tensor.

        Args:
            spec: the update rule.
            shards: what this rank owns of each bucket of the plan.
            parameters: by weight name.
            exchange: with the ranks that own the rest; None: nobody does.
        """
        self._spec, self._shards, self._exchange = spec, shards, exchange
        self._pieces: list[list[torch.nn.Parameter]] = []
        self._flats = [_flat_weights(shard, parameters) for shard in shards]
        groups: dict[Setting, dict[str, Any]] = {}
        for shard, flat in zip(shards, self._flats, strict=True):
            own: list[torch.nn.Parameter] = []
            for each in shard.pieces(spec):
                own.append(torch.nn.Parameter(flat[each.start : each.start + each.size]))
                group = groups.setdefault(each.setting, empty_group(each.setting))
                group["params"].append(own[-1])
                group["parts"].append(each.parts)
            self._pieces.append(own)
        norms = Norms(spec, shards, exchange, self._flats[0])
        scratch = self._flats[0].new_empty(scratch_elements(spec, shards))
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
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        for pieces, gradient in zip(self._pieces, gradients, strict=True):
            sizes = [piece.numel() for piece in pieces]
            for piece, part in zip(pieces, gradient[: sum(sizes)].split(sizes), strict=True):
                piece.grad = part
        self._optimizer.step()
        if self._exchange is not None:
            own = [
                flat[shard.start : shard.start + shard.size]
                for shard, flat in zip(self._shards, self._flats, strict=True)
            ]
            whole = self._exchange.gather(self._shards, own, "weights")
            for flat, found in zip(self._flats, whole, strict=True):
                flat.copy_(found)

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

    def read_weights(self) -> list[torch.Tensor]:
        """The weights themselves, flat, one tensor a bucket."""
        return [flat[: s.bucket.size] for flat, s in zip(self._flats, self._shards, strict=True)]

    def write_weights(self, weights: Sequence[torch.Tensor]) -> None:
        """Set every weight.

        Args:
            weights: flat, one a bucket.
        """
        for flat, given in zip(self.read_weights(), weights, strict=True):
            if given.data_ptr() != flat.data_ptr():
                flat.copy_(given)

    @property
    def wire_bytes(self) -> int:
        """Bytes of weights that this rank has handed to collectives so far."""
        return 0 if self._exchange is None else self._exchange.wire_bytes

    def _read(
        self, shard: Shard, pieces: Sequence[torch.nn.Parameter], moment: str
    ) -> Iterator[tuple[str, np.ndarray]]:
        flat = self._whole(shard, [self._moment(piece, moment) for piece in pieces])
        for weight, part in zip(shard.bucket.weights, flat.split(shard.bucket.sizes), strict=True):
            yield f"{weight.name}.{moment}", part.reshape(weight.shape).cpu().numpy()

    def _moment(self, piece: torch.nn.Parameter, moment: str) -> torch.Tensor:
        found = self._optimizer.state.get(piece, {}).get(moment)
        return (torch.zeros_like(piece) if found is None else found).detach()

    def _whole(self, shard: Shard, own: Sequence[torch.Tensor]) -> torch.Tensor:
        """All of a bucket, of which this rank has these parts."""
        padding = self._flats[0].new_zeros(shard.size - sum(part.numel() for part in own))
        flat = torch.cat([*own, padding])
        if self._exchange is not None:
            (flat,) = self._exchange.gather([shard], [flat], "moments")
        return flat[: shard.bucket.size]


def _flat_weights(shard: Shard, parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor:
    bucket = shard.bucket
    own = [parameters[w.name].detach().reshape(-1) for w in bucket.weights]
    flat = torch.cat([*own, own[0].new_zeros(shard.padded - bucket.size)])
    for weight, part in zip(bucket.weights, flat[: bucket.size].split(bucket.sizes), strict=True):
        parameters[weight.name].data = part.view(weight.shape)
    return flat
