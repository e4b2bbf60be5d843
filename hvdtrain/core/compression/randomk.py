"""Random elements alone, the same on every rank (Stich et al. 2018, arXiv:1809.07599)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.compression.protocol import AllReduce, Array, Ops, Policy, Reduction, State


class RandomK(Policy):
    """Sums a random share of a bucket's elements, drawn anew each update from a key that all ranks know.

    State: `residual`, as the bucket.

    Attributes:
        ratio: share of a bucket's elements that is sent, at least one element.
        use_error_feedback: whether what was not sent is added to the next update's gradients; without it,
            what is sent is divided by its share, which keeps the sum right on average (Wangni et al. 2018).
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"residual"})
    type: Literal["randomk"] = "randomk"
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    use_error_feedback: bool = True

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing waits."""
        return {"residual": ops.zeros((bucket.size,), dtype)} if self.use_error_feedback else {}

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce of the chosen values: no positions travel."""
        count = self._count(bucket)
        waiting = flat + state["residual"] if self.use_error_feedback else flat
        indices = ops.random_subset(bucket.size, count, "randomk", update, bucket.index)
        values = ops.take(waiting, indices)
        # An element that was not chosen may be the one that is not finite.
        summed = yield AllReduce(values + ops.poison(waiting))
        if self.use_error_feedback:
            state = {"residual": ops.scatter_add(waiting, indices, -values)}
        else:
            summed = summed * (bucket.size / count)
        return ops.spread(indices, summed, into=flat), state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """The chosen elements."""
        return self._count(bucket) * itemsize

    def _count(self, bucket: Bucket) -> int:
        return max(1, math.ceil(self.ratio * bucket.size))
