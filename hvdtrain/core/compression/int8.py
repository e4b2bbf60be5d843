"""Block-wise 8-bit integers with stochastic rounding (QSGD, Alistarh et al. 2017, arXiv:1610.02132)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hvdtrain.core.compression.protocol import (
    AllGather,
    AllToAll,
    Array,
    Ops,
    Policy,
    Reduction,
    Request,
    State,
)
from hvdtrain.core.update.buckets import Bucket

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
    shards: ClassVar[bool] = True
    type: Literal["int8"] = "int8"
    block_size: Annotated[int, Field(ge=1)] = 256
    use_error_feedback: bool = True

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing was lost yet."""
        return {"residual": ops.zeros((bucket.size,), dtype)} if self.use_error_feedback else {}

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """An all-to-all of quantised shards, a sum, and an allgather of quantised sums."""
        wire, dtype = self._wire(bucket, ops.ranks), ops.dtype(flat)
        mine, lost = yield from self._sum_of_shard(ops, bucket, flat, state, update)
        noise = ops.random_uniform(wire.shard, "int8 sum", update, bucket.index, ops.rank)
        message, lost_of_sum = wire.quantise(ops, mine, noise)
        gathered = yield AllGather(ops.reshape(message, (-1,)))
        if self.use_error_feedback:
            lost = ops.add_row(lost, ops.rank, ops.reshape(lost_of_sum, (-1,)))
            state = {"residual": ops.reshape(lost, (-1,))[: bucket.size]}
        return ops.reshape(wire.widen(ops, gathered, dtype), (-1,))[: bucket.size], state

    def scatter(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """An all-to-all of quantised shards, and a sum, which is not rounded."""
        mine, lost = yield from self._sum_of_shard(ops, bucket, flat[: bucket.size], state, update)
        if self.use_error_feedback:
            state = {"residual": ops.reshape(lost, (-1,))[: bucket.size]}
        return mine, state

    def shard_size(self, bucket: Bucket, ranks: int) -> int:
        """As `Policy.shard_size`: whole blocks."""
        return self._wire(bucket, ranks).shard

    def scatter_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """A byte an element and four a block, in shards for all ranks."""
        return self._wire(bucket, ranks).message_bytes * ranks

    def _sum_of_shard(
        self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array
    ) -> Generator[Request, Array, tuple[Array, Array]]:
        """This rank's shard of the sum, (shard,), and what rounding took from it, (ranks, shard)."""
        wire, dtype = self._wire(bucket, ops.ranks), ops.dtype(flat)
        if self.use_error_feedback:
            flat += state["residual"]
        tail = ops.zeros((ops.ranks * wire.shard - bucket.size,), dtype)
        noise = ops.random_uniform(ops.ranks * wire.shard, "int8", update, bucket.index, ops.rank)
        message, lost = wire.quantise(ops, ops.concat([flat, tail]), noise)
        received = yield AllToAll(message)
        return ops.sum(wire.widen(ops, received, dtype)), lost

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """A byte an element and four a block, once in shards for all ranks and once for the own shard."""
        return self._wire(bucket, ranks).message_bytes * (ranks + 1)

    def _wire(self, bucket: Bucket, ranks: int) -> _Wire:
        share = -(-bucket.size // ranks)
        block = min(self.block_size, share)
        return _Wire(block, -(-share // block))


@dataclass(frozen=True)
class _Wire:
    """A shard on the wire: the steps of its blocks, then their multiples."""

    block: int
    blocks: int

    @property
    def shard(self) -> int:
        return self.block * self.blocks

    @property
    def message_bytes(self) -> int:
        return self.shard + _STEP_BYTES * self.blocks

    def quantise(self, ops: Ops, flat: Array, noise: Array) -> tuple[Array, Array]:
        """Shards behind each other: as uint8 (shards, message_bytes), and what that lost (shards, shard)."""
        blocks, noise = (ops.reshape(array, (-1, self.block)) for array in (flat, noise))
        steps, multiples, lost = ops.quantise(blocks, noise)
        message = ops.concat(
            [
                ops.to_bytes(ops.reshape(steps, (-1, self.blocks))),
                ops.to_bytes(ops.reshape(multiples, (-1, self.shard))),
            ]
        )
        return message, ops.reshape(lost, (-1, self.shard))

    def widen(self, ops: Ops, messages: Array, dtype: str) -> Array:
        """The numbers that messages stand for: (shards, shard)."""
        head = _STEP_BYTES * self.blocks
        steps = ops.reshape(ops.from_bytes(messages[:, :head], "float32"), (-1,))
        multiples = ops.reshape(ops.from_bytes(messages[:, head:], "int8"), (-1, self.block))
        return ops.reshape(ops.dequantise(steps, multiples, dtype), (-1, self.shard))
