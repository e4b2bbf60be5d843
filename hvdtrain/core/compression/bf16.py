"""bfloat16 wire: gradients travel as upper halves of float32 (Kalamkar et al. 2019, arXiv:1905.12322)."""

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

_ITEMSIZE = 2


class Bf16(Policy):
    """Sums gradients as bfloat16: the range of float32, so no scale is needed, and 8 bits of precision.

    Each sum of two ranks' numbers is taken in float32 and rounded to nearest even. What a sum's own rounding
    loses is not fed back: no rank knows it.
    State: `residual`, as the bucket.

    Attributes:
        use_error_feedback: whether what rounding took from a rank's gradients is added to the next update's.
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"residual"})
    elementwise: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    shards: ClassVar[bool] = True
    wire_types: ClassVar[frozenset[str]] = frozenset({"bfloat16"})
    type: Literal["bf16"] = "bf16"
    use_error_feedback: bool = True

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing was lost yet."""
        return {"residual": ops.zeros((bucket.size,), dtype)} if self.use_error_feedback else {}

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce of the rounded bucket."""
        sent, state = self._round(ops, flat, state)
        total = yield AllReduce(sent)
        return ops.lengthen(total, flat), state

    def scatter(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One reducescatter of the rounded bucket."""
        shard = self.shard_size(bucket, ops.ranks)
        sent, state = self._round(ops, flat[: bucket.size], state)
        padding = ops.ranks * shard - bucket.size
        sent = ops.concat([sent, ops.zeros((padding,), "bfloat16")]) if padding else sent
        mine = yield ReduceScatter(ops.reshape(sent, (ops.ranks, -1)))
        return ops.lengthen(mine, flat[:shard]), state

    def scatter_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Two bytes an element, padding included."""
        return ranks * self.shard_size(bucket, ranks) * _ITEMSIZE

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Two bytes an element."""
        return bucket.size * _ITEMSIZE

    def _round(self, ops: Ops, flat: Array, state: State) -> tuple[Array, State]:
        if not self.use_error_feedback:
            return ops.cast(flat, "bfloat16"), state
        sent, lost = ops.shorten(flat, state["residual"])
        return sent, {"residual": lost}
