"""Block-wise 8-bit integers with stochastic rounding (QSGD, Alistarh et al. 2017, arXiv:1610.02132)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.compression.protocol import AllGather, AllToAll, Array, Ops, Policy, Reduction, State

_LARGEST = 127
_STEP_BYTES = 4


class Int8(Policy):
    """Sums gradients that travel as int8 with one float32 step a block; integers are never summed.

    Each rank owns one shard of the bucket: it receives every rank's quantised part of it, sums what they
    stand for, and sends the sum to all, quantised again. Error feedback keeps both roundings: a rank its own,
    and the owner that of the sum. State: `residual`, as the bucket.

    Attributes:
        block_size: elements that share a step; a shard shorter than that is one block.
        use_error_feedback: whether what rounding lost is added to the next update's gradients.
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"residual"})
    type: Literal["int8"] = "int8"
    block_size: Annotated[int, Field(ge=1)] = 256
    use_error_feedback: bool = True

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing was lost yet."""
        return {"residual": ops.zeros((bucket.size,), dtype)} if self.use_error_feedback else {}

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """An all-to-all of quantised shards, a sum, and an allgather of quantised sums."""
        wire, dtype = self._wire(bucket, ops.ranks), ops.dtype(flat)
        if self.use_error_feedback:
            flat += state["residual"]
        tail = ops.zeros((ops.ranks * wire.shard - bucket.size,), dtype)
        noise = ops.random_uniform(ops.ranks * wire.shard, "int8", update, bucket.index, ops.rank)
        padded = ops.reshape(ops.concat([flat, tail]), (ops.ranks, wire.shard))
        message = wire.quantise(ops, padded, noise)
        received = yield AllToAll(message)
        mine = ops.sum(wire.widen(ops, received, dtype))
        noise = ops.random_uniform(wire.shard, "int8 sum", update, bucket.index, ops.rank)
        gathered = yield AllGather(ops.reshape(wire.quantise(ops, mine, noise), (-1,)))
        sums = wire.widen(ops, gathered, dtype)
        if self.use_error_feedback:
            padded -= wire.widen(ops, message, dtype)
            padded = ops.add_row(padded, ops.rank, mine - sums[ops.rank])
            state = {"residual": ops.reshape(padded, (-1,))[: bucket.size]}
        return ops.reshape(sums, (-1,))[: bucket.size], state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """A byte an element and four a block, once in shards for all ranks and once for the own shard."""
        return self._wire(bucket, ranks).message_bytes * (ranks + 1)

    def _wire(self, bucket: Bucket, ranks: int) -> _Wire:
        share = -(-bucket.size // ranks)
        block = min(self.block_size, share)
        return _Wire(block, -(-share // block))


@dataclass(frozen=True)
class _Wire:
    """A shard on the wire: the steps of its blocks, then its integers."""

    block: int
    blocks: int

    @property
    def shard(self) -> int:
        return self.block * self.blocks

    @property
    def message_bytes(self) -> int:
        return self.shard + _STEP_BYTES * self.blocks

    def quantise(self, ops: Ops, flat: Array, noise: Array) -> Array:
        """Shards behind each other, and noise in [0, 1) as many: uint8 (shards, message_bytes)."""
        blocks = ops.reshape(flat, (-1, self.block))
        noise = ops.cast(ops.reshape(noise, (-1, self.block)), ops.dtype(flat))
        steps = ops.cast(ops.magnitude(blocks) / _LARGEST, "float32")
        divisors = ops.cast(ops.where(steps > 0.0, steps, steps * 0.0 + 1.0), ops.dtype(flat))
        scaled = blocks / ops.reshape(divisors, (-1, 1))
        scaled += noise
        integers = ops.cast(ops.clip(ops.floor(scaled), -_LARGEST, _LARGEST), "int8")
        return ops.concat(
            [
                ops.to_bytes(ops.reshape(steps, (-1, self.blocks))),
                ops.to_bytes(ops.reshape(integers, (-1, self.shard))),
            ]
        )

    def widen(self, ops: Ops, messages: Array, dtype: str) -> Array:
        """The numbers that messages stand for: (shards, shard)."""
        head = _STEP_BYTES * self.blocks
        steps = ops.cast(ops.from_bytes(messages[:, :head], "float32"), dtype)
        integers = ops.cast(ops.from_bytes(messages[:, head:], "int8"), dtype)
        numbers = ops.reshape(integers, (-1, self.block))
        numbers *= ops.reshape(steps, (-1, 1))
        return ops.reshape(numbers, (-1, self.shard))
