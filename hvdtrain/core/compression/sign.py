"""One bit an element and one scale a weight: EF-signSGD (Karimireddy et al. 2019, arXiv:1901.09847)."""

from __future__ import annotations

from typing import ClassVar, Literal

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.compression.protocol import AllGather, Array, Ops, Policy, Reduction, State

_SCALE_BYTES = 4


class Sign(Policy):
    """Sums signs times the mean magnitude of each weight's gradient.

    State: `residual`, as the bucket.

    Attributes:
        use_error_feedback: whether what a sign does not tell is added to the next update's gradients;
            without it signSGD need not converge.
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"residual"})
    elementwise: ClassVar[bool] = True
    type: Literal["sign"] = "sign"
    use_error_feedback: bool = True

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing was lost yet."""
        return {"residual": ops.zeros((bucket.size,), dtype)} if self.use_error_feedback else {}

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allgather of bits and scales; every rank sums them in the order of ranks."""
        dtype, sizes = ops.dtype(flat), _sizes(bucket)
        if self.use_error_feedback:
            flat += state["residual"]
        means = [
            ops.reshape(ops.sum(abs(part)) / size, (1,))
            for part, size in zip(ops.split(flat, sizes), sizes, strict=True)
        ]
        # A scale that is not finite reaches every element of its weight, so nothing is laundered.
        message = ops.concat(
            [ops.to_bytes(ops.cast(ops.concat(means), "float32")), ops.pack_bits(flat >= 0.0)]
        )
        gathered = yield AllGather(message)
        total = ops.zeros((bucket.size,), dtype)
        for rank in range(ops.ranks):
            total += _signed(ops, gathered[rank], sizes, dtype)
        if self.use_error_feedback:
            state = {"residual": flat - _signed(ops, message, sizes, dtype)}
        return total, state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """A bit an element, rounded up to a byte, and four bytes a weight."""
        return -(-bucket.size // 8) + _SCALE_BYTES * len(_sizes(bucket))


def _sizes(bucket: Bucket) -> list[int]:
    return [size for size in bucket.sizes if size]


def _signed(ops: Ops, message: Array, sizes: list[int], dtype: str) -> Array:
    """What a message stands for."""
    head = _SCALE_BYTES * len(sizes)
    signed = ops.unpack_signs(message[head:], sum(sizes), dtype)
    signed *= ops.repeat(ops.cast(ops.from_bytes(message[:head], "float32"), dtype), sizes)
    return signed
