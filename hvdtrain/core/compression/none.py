"""No compression: often the right choice (Agarwal et al., MLSys 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

from hvdtrain.core.compression.protocol import (
    AllReduce,
    Array,
    Ops,
    Policy,
    ReduceScatter,
    Reduction,
    State,
)
from hvdtrain.core.update.buckets import Bucket


class NoCompression(Policy):
    """Sums gradients in their own dtype."""

    elementwise: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    shards: ClassVar[bool] = True
    type: Literal["none"] = "none"

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce of the bucket as it is."""
        total = yield AllReduce(flat)
        return total, state

    def scatter(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One reducescatter of the bucket as it is."""
        mine = yield ReduceScatter(ops.reshape(flat, (ops.ranks, -1)))
        return mine, state

    def scatter_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Every element once, and the padding."""
        return ranks * self.shard_size(bucket, ranks) * itemsize

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Every element once."""
        return bucket.size * itemsize
