"""What ranks that own shards of the weights tell each other."""

from __future__ import annotations

from collections.abc import Sequence

import horovod.torch as hvd
import torch

from hvdtrain.core.update.shards import Shard


class ShardExchange:
    """Sums over ranks, and whole buckets from their shards.

    Attributes:
        wire_bytes: bytes of shards that this rank has handed to collectives so far.
    """

    def __init__(self) -> None:
        """Nothing has been sent."""
        self.wire_bytes = 0

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """The element-wise sum over ranks.

        Args:
            values: of the same shape on every rank.
            name: of the collective.
        """
        return hvd.allreduce(values, op=hvd.Sum, name=f"shards.{name}")

    def gather(self, shards: Sequence[Shard], flats: Sequence[torch.Tensor], name: str) -> None:
        """Fill in what the other ranks own.

        Args:
            shards: of this rank, one a bucket.
            flats: (shard.padded,) for each, in which this rank's own part is set.
            name: of the collectives.
        """
        handles = []
        for shard, flat in zip(shards, flats, strict=True):
            own = flat[shard.start : shard.start + shard.size].clone()
            self.wire_bytes += own.nbytes
            handles.append(hvd.allgather_async(own, name=f"shards.{name}.bucket{shard.bucket.index}"))
        for flat, handle in zip(flats, handles, strict=True):
            flat.copy_(hvd.synchronize(handle))
