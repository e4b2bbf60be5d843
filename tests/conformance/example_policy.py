"""Ternary gradients (TernGrad, Wen et al. 2017, arXiv:1705.07878): the example of docs/compression.md."""

from __future__ import annotations

from typing import Literal

from hvdtrain.core.compression.protocol import AllGather, Array, Ops, Policy, Reduction, State
from hvdtrain.core.update.buckets import Bucket


class Ternary(Policy):
    """Sends -1, 0 or 1 an element, at random and right on average, and the largest magnitude of a bucket."""

    type: Literal["ternary"] = "ternary"

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allgather of a byte an element and one number."""
        dtype = ops.dtype(flat)
        largest = ops.reshape(ops.max(abs(flat)) + ops.poison(flat), (1,))
        noise = ops.cast(ops.random_uniform(bucket.size, "ternary", update, bucket.index, ops.rank), dtype)
        zeros = ops.zeros((bucket.size,), dtype)
        signs = ops.where(flat >= 0.0, zeros + 1.0, zeros - 1.0)
        kept = ops.where(abs(flat) > noise * largest, signs, zeros)
        message = ops.concat([ops.to_bytes(largest), ops.to_bytes(ops.cast(kept, "int8"))])
        gathered = yield AllGather(message)
        head = gathered.shape[1] - bucket.size
        total = zeros
        for rank in range(ops.ranks):
            scale = ops.from_bytes(gathered[rank, :head], dtype)
            total = total + scale * ops.cast(ops.from_bytes(gathered[rank, head:], "int8"), dtype)
        return total, state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """A byte an element and one number."""
        return bucket.size + itemsize
