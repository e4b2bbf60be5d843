"""The largest elements alone: Deep Gradient Compression (Lin et al. 2018, arXiv:1712.01887)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.compression.positions import POSITION_BYTES, gather_and_sum
from hvdtrain.core.compression.protocol import Array, Ops, Policy, Reduction, State

# The paper's warm-up: 25 % at first, then a quarter of that, and so on.
_WARMUP_FACTOR = 0.25


class TopK(Policy):
    """Sums each rank's largest elements of a bucket; the others wait in the residual until they are large.

    State: `residual` and, with momentum correction, `momentum`; both as the bucket.

    Attributes:
        ratio: share of a bucket's elements that a rank sends, at least one element.
        use_error_feedback: whether what was not sent is added to the next update's gradients.
        momentum: DGC's momentum correction: momentum is taken before the selection, and the optimizer
            must have none of its own; 0 turns it off.
        local_clipping: L2 norm that a bucket of the summed gradients should not exceed: each rank's share is
            limited to this / sqrt(ranks) before it meets the residual.
        warmup_steps: updates in which the ratio falls from 0.25 to `ratio`, by a factor of 4 at a time.
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"residual", "momentum"})
    elementwise: ClassVar[bool] = True
    type: Literal["topk"] = "topk"
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    use_error_feedback: bool = True
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    local_clipping: Annotated[float, Field(gt=0.0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _momentum_needs_error_feedback(self) -> TopK:
        if self.momentum and not self.use_error_feedback:
            raise ValueError(
                f"momentum {self.momentum} needs use_error_feedback: true, which gathers what was not sent"
            )
        return self

    @property
    def corrects_momentum(self) -> bool:
        """Whether momentum is taken before the selection."""
        return self.momentum > 0.0

    def at(self, update: int) -> Policy:
        """During warm-up, this policy with a larger ratio."""
        if update > self.warmup_steps:
            return self
        stages = max(1, math.ceil(math.log(self.ratio, _WARMUP_FACTOR)) - 1)
        stage = (update - 1) * stages // self.warmup_steps
        ratio = max(self.ratio, _WARMUP_FACTOR ** (stage + 1))
        return self.model_copy(update={"ratio": ratio})

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing waits, nothing moves."""
        names = ["residual"] * self.use_error_feedback + ["momentum"] * bool(self.momentum)
        return {name: ops.zeros((bucket.size,), dtype) for name in names}

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allgather of values and int32 positions; every rank sums them in the order of ranks."""
        step = self._step(ops, flat, state)
        waiting = step + state["residual"] if self.use_error_feedback else step
        indices = ops.top_k(abs(waiting), _count(self.ratio, bucket.size))
        values = ops.take(waiting, indices)
        # Comparisons with NaN are arbitrary: it might not be among the largest.
        told = values + ops.poison(waiting)
        total = yield from gather_and_sum(ops, told, indices, into=flat)
        found: State = {}
        if self.momentum:
            found["momentum"] = ops.scatter_add(step, indices, -ops.take(step, indices))
        if self.use_error_feedback:
            found["residual"] = ops.scatter_add(waiting, indices, -values)
        return total, found

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """A value and four bytes of position for each element sent."""
        return _count(self.ratio, bucket.size) * (itemsize + POSITION_BYTES)

    def _step(self, ops: Ops, flat: Array, state: State) -> Array:
        if self.local_clipping is not None:
            row = ops.reshape(flat, (1, -1))
            norm = ops.reshape(row @ ops.transpose(row), ()) ** 0.5
            flat = flat * ops.clip(self.local_clipping / ops.ranks**0.5 / norm, 0.0, 1.0)
        return flat + self.momentum * state["momentum"] if self.momentum else flat


def _count(ratio: float, size: int) -> int:
    return max(1, math.ceil(ratio * size))
