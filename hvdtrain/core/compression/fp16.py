"""Half-precision wire: gradients travel as IEEE binary16 under a power-of-two scale that fits them.

Micikevicius et al. 2018 (arXiv:1710.03740) scale the loss for the same reason; a scale of the wire alone
changes nothing but what is rounded, since a power of two is taken out again exactly.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar, Literal

from hvdtrain.core.compression.protocol import (
    AllGather,
    AllReduce,
    Array,
    Ops,
    Policy,
    ReduceScatter,
    Reduction,
    Request,
    State,
)
from hvdtrain.core.update.buckets import Bucket

_ITEMSIZE, _MAXIMUM_BYTES = 2, 4
# How much larger than the largest sum of recent updates one rank's element may be without being clipped.
_HEADROOM = 8.0
_FORGETTING = 0.99
# Beyond these a scaled float32, or the scale itself, could leave float32.
_SMALLEST, _LARGEST = 2.0**-75, 2.0**120


class Fp16(Policy):
    """Sums gradients as float16, scaled so that neither overflow nor underflow loses an update.

    A rank's contribution is clipped to 32768 / ranks, so that no sum can overflow; clips are counted. The
    scale follows the running maximum of the reduced gradients, which every rank knows; the first update
    gathers the ranks' own maxima (4 bytes a bucket) instead.
    State: `maximum` (float32) and `clips` (int64, elements that this rank has clipped).
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"clips"})
    counters: ClassVar[frozenset[str]] = frozenset({"clips"})
    elementwise: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    shards: ClassVar[bool] = True
    type: Literal["fp16"] = "fp16"

    def at(self, update: int) -> Policy:
        """The first update finds its scale by a collective of its own."""
        return _FirstFp16() if update == 1 else self

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """No maximum is known, nothing was clipped."""
        return {"maximum": ops.zeros((), "float32"), "clips": ops.zeros((), "int64")}

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce of the scaled and rounded bucket."""
        maximum = yield from self._maximum(ops, flat, state)
        halves, scale, clips = _narrow(ops, flat, maximum)
        total = yield AllReduce(halves)
        reduced, seen = ops.widen(total, scale, flat)
        return reduced, _after(ops, state, maximum, seen, clips)

    def scatter(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One reducescatter of the scaled and rounded bucket, and an allgather of the shards' maxima."""
        maximum = yield from self._maximum(ops, flat, state)
        halves, scale, clips = _narrow(ops, flat, maximum)
        total = yield ReduceScatter(ops.reshape(halves, (ops.ranks, -1)))
        mine, seen = ops.widen(total, scale, flat[: self.shard_size(bucket, ops.ranks)])
        every = yield AllGather(ops.reshape(seen, (1,)))
        return mine, _after(ops, state, maximum, ops.max(ops.reshape(every, (-1,))), clips)

    def scatter_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Two bytes an element, padding included, and four for the shard's maximum."""
        return ranks * self.shard_size(bucket, ranks) * _ITEMSIZE + _MAXIMUM_BYTES

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Two bytes an element."""
        return bucket.size * _ITEMSIZE

    def _maximum(self, ops: Ops, flat: Array, state: State) -> Generator[Request, Array, Array]:
        yield from ()
        return state["maximum"]


class _FirstFp16(Fp16):
    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        return super().wire_bytes(bucket, itemsize, ranks) + _MAXIMUM_BYTES

    def scatter_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        return super().scatter_bytes(bucket, itemsize, ranks) + _MAXIMUM_BYTES

    def _maximum(self, ops: Ops, flat: Array, state: State) -> Generator[Request, Array, Array]:
        own = ops.cast(ops.magnitude(flat), "float32")
        every = yield AllGather(ops.reshape(own, (1,)))
        return ops.max(ops.reshape(every, (-1,)))


def _narrow(ops: Ops, flat: Array, maximum: Array) -> tuple[Array, Array, Array]:
    """The bucket in 16 bits, the scale that it has there, and how many elements were clipped."""
    limit = _limit(ops.ranks)
    ceiling = 2.0 * ops.power_of_two(ops.clip(maximum, _SMALLEST, _LARGEST))
    scale = ops.cast(limit / _HEADROOM / ceiling, ops.dtype(flat))
    halves, clips = ops.narrow(flat, scale, limit)
    return halves, scale, clips


def _after(ops: Ops, state: State, maximum: Array, seen: Array, clips: Array) -> State:
    before = _FORGETTING * maximum
    return {"maximum": ops.where(seen > before, seen, before), "clips": state["clips"] + clips}


def _limit(ranks: int) -> float:
    # A power of two: exact in float16, and its sum over the ranks stays below 65504.
    return 2.0 ** (15 - (ranks - 1).bit_length())
