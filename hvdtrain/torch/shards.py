"""What ranks that own shards of the weights tell each other."""

from __future__ import annotations

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

    def broadcast(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """Rank 0's values; arguments as `sum`."""
        return hvd.broadcast(values, root_rank=0, name=f"shards.{name}")

    def gather(self, shard: Shard, own: torch.Tensor, name: str) -> torch.Tensor:
        """A whole bucket, of which this rank has a part.

        Args:
            shard: of this rank.
            own: what is in it, (shard.size,).
            name: of the collective, before that of the bucket.

        Returns:
            (shard.padded,).
        """
        self.count(own.nbytes)
        return self.finish(self.start(own, f"{name}.bucket{shard.bucket.index}"), own.dtype)

    def count(self, sent: int) -> None:
        """Take note of bytes that are to be sent; `start` does not.

        Args:
            sent: bytes of this rank's shards.
        """
        self._wire_bytes += sent

    def start(self, own: torch.Tensor, name: str) -> int:
        """Begin to gather a bucket, whose bytes have been counted.

        Args:
            own: what is in this rank's shard.
            name: of the collective; no other of this name is under way.

        Returns:
            Horovod's handle.
        """
        # No arithmetic is done on the way, and Horovod's releases do not carry bfloat16.
        sent = own.view(torch.float16) if own.dtype == torch.bfloat16 else own
        return hvd.allgather_async(sent, name=f"shards.{name}")

    def finish(self, handle: int, dtype: torch.dtype) -> torch.Tensor:
        """Wait for a bucket.

        Args:
            handle: which `start` returned.
            dtype: of what it was given.

        Returns:
            (shard.padded,).
        """
        return hvd.synchronize(handle).view(dtype)

    @property
    def wire_bytes(self) -> int:
        """Bytes of shards that this rank has handed to collectives so far."""
        return self._wire_bytes
