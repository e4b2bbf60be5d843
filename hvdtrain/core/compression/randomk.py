"""Random elements alone, the same on every rank (Stich et al. 2018, arXiv:1809.07599)."""

from __future__ import annotations

from typing import Literal

from hvdtrain.core.compression.dgc import DGC
from hvdtrain.core.compression.protocol import AllReduce, Array, Ops, Reduction, State
from hvdtrain.core.update.buckets import Bucket


class RandomK(DGC):
    """Sums a random share of a bucket's elements, drawn in each update from a key that all ranks know.

    State and attributes: as `DGC`. Without error feedback what is sent is divided by its share, which keeps
    the sum right on average (Wangni et al. 2018).
    """

    type: Literal["randomk"] = "randomk"

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce of the chosen values: no positions travel."""
        count = self.count(bucket)
        step, waiting = self.waiting(ops, flat, state)
        indices = ops.random_subset(bucket.size, count, "randomk", update, bucket.index)
        values = ops.take(waiting, indices)
        # An element that was not chosen may be the one that is not finite.
        summed = yield AllReduce(values + ops.poison(waiting))
        if not self.use_error_feedback:
            summed = summed * (bucket.size / count)
        return ops.spread(indices, summed, into=flat), self.left(ops, step, waiting, indices, values)

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """The chosen elements."""
        return self.count(bucket) * itemsize
