"""One bit an element and one scale a block: EF-signSGD (Karimireddy et al. 2019, arXiv:1901.09847).

Scales of blocks instead of whole weights: Zheng et al. 2019 (arXiv:1905.10936).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hvdtrain.core.compression.protocol import AllGather, Array, Ops, Policy, Reduction, State
from hvdtrain.core.update.buckets import Bucket

_SCALE_BYTES = 4


class Sign(Policy):
    """Sums signs times the mean magnitude of each block of a bucket.

    State: `residual`, as the bucket.

    Attributes:
        block_size: elements that share a scale; a bucket shorter than that is one block.
        use_error_feedback: whether what a sign does not tell is added to the next update's gradients;
            without it signSGD need not converge.
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"residual"})
    type: Literal["sign"] = "sign"
    block_size: Annotated[int, Field(ge=1)] = 64
    use_error_feedback: bool = True

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing was lost yet."""
        return {"residual": ops.zeros((bucket.size,), dtype)} if self.use_error_feedback else {}

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allgather of scales and bits; every rank sums them in the order of ranks."""
        dtype, block, blocks = ops.dtype(flat), self._block(bucket), self._blocks(bucket)
        if self.use_error_feedback:
            flat += state["residual"]
        excess = block * blocks - bucket.size
        whole = ops.concat([flat, ops.zeros((excess,), dtype)]) if excess else flat
        padded = ops.reshape(whole, (blocks, block))
        # A product with ones: the quickest sum along the last axis in either framework.
        means = ops.reshape(abs(padded) @ (ops.zeros((block, 1), dtype) + 1.0), (-1,))
        means /= ops.concat(
            [ops.zeros((blocks - 1,), dtype) + block, ops.zeros((1,), dtype) + (block - excess)]
        )
        # A scale that is not finite reaches every element of its block, so nothing is laundered.
        bits = ops.pack_signs(whole)
        message = ops.concat([ops.to_bytes(ops.cast(means, "float32")), bits])
        gathered = yield AllGather(message)
        total = self._signed(ops, bucket, gathered[0], dtype)
        for rank in range(1, ops.ranks):
            total += self._signed(ops, bucket, gathered[rank], dtype)
        if self.use_error_feedback:
            state = {"residual": flat - self._signed(ops, bucket, message, dtype)}
        return total, state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """A bit an element of whole blocks, rounded up to a byte, and four bytes a block."""
        blocks = self._blocks(bucket)
        return -(-blocks * self._block(bucket) // 8) + _SCALE_BYTES * blocks

    def _block(self, bucket: Bucket) -> int:
        return min(self.block_size, bucket.size)

    def _blocks(self, bucket: Bucket) -> int:
        return -(-bucket.size // self._block(bucket))

    def _signed(self, ops: Ops, bucket: Bucket, message: Array, dtype: str) -> Array:
        """What a message stands for."""
        block, blocks = self._block(bucket), self._blocks(bucket)
        head = _SCALE_BYTES * blocks
        signed = ops.reshape(ops.unpack_signs(message[head:], block * blocks, dtype), (blocks, block))
        signed *= ops.reshape(ops.cast(ops.from_bytes(message[:head], "float32"), dtype), (-1, 1))
        return ops.reshape(signed, (-1,))[: bucket.size]
