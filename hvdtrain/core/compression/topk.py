"""The largest elements alone: Deep Gradient Compression (Lin et al. 2018, arXiv:1712.01887)."""

from __future__ import annotations

from typing import ClassVar, Literal

from hvdtrain.core.compression.dgc import DGC
from hvdtrain.core.compression.positions import POSITION_BYTES, gather_and_sum
from hvdtrain.core.compression.protocol import Array, Ops, Reduction, State
from hvdtrain.core.update.buckets import Bucket


class TopK(DGC):
    """Sums each rank's largest elements of a bucket; the others wait in the residual until they are large.

    State and attributes: as `DGC`.
    """

    elementwise: ClassVar[bool] = True
    type: Literal["topk"] = "topk"

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allgather of values and int32 positions; every rank sums them in the order of ranks."""
        step, waiting = self.waiting(ops, flat, state)
        indices = ops.top_k(abs(waiting), self.count(bucket))
        values = ops.take(waiting, indices)
        # Comparisons with NaN are arbitrary: it might not be among the largest.
        told = values + ops.poison(waiting)
        total = yield from gather_and_sum(ops, told, indices, into=flat)
        return total, self.left(ops, step, waiting, indices, values)

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """A value and four bytes of position for each element sent."""
        return self.count(bucket) * (itemsize + POSITION_BYTES)
