"""A policy that this package does not know: gradients are halved for the sum, and it is doubled."""

from __future__ import annotations

from typing import Literal

from hvdtrain.core.compression.protocol import AllReduce, Array, Ops, Policy, Reduction, State
from hvdtrain.core.update.buckets import Bucket


class Halves(Policy):
    """Powers of two change nothing."""

    type: Literal["halves"] = "halves"

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        total = yield AllReduce(flat * 0.5)
        return total * 2.0, state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        return bucket.size * itemsize
