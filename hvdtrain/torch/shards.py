"""What ranks that own shards of the weights tell each other."""

from __future__ import annotations

from collections.abc import Sequence

import horovod.torch as hvd
import torch

from hvdtrain.core.update.shards import Shard


class ShardExchange:
    """Sums over ranks, and whole buckets from their shards."""

    def __init__(self) -> None:
        """Nothing has been sent."""
        self._wire_bytes = 0

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """The element-wise sum over ranks.

        Args:
            values: of the same shape on every rank.
            name: of the collective.
        """
        return hvd.allreduce(values, op=hvd.Sum, name=f"shards.{name}")

    def gather(self, shards: Sequence[Shard], own: Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
        """Whole buckets, each of which this rank has a part of.

        Args:
            shards: of this rank, one a bucket.
            own: what is in them, (shard.size,) for each.
            name: of the collectives.

        Returns:
            (shard.padded,) for each.
        """
        handles = []
        for shard, part in zip(shards, own, strict=True):
            self._wire_bytes += part.nbytes
            handles.append(hvd.allgather_async(part, name=f"shards.{name}.bucket{shard.bucket.index}"))
        return [hvd.synchronize(handle) for handle in handles]

    @property
    def wire_bytes(self) -> int:
        """Bytes of shards that this rank has handed to collectives so far."""
        return self._wire_bytes
