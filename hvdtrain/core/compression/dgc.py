"""What `topk` and `randomk` have in common: Deep Gradient Compression (Lin et al. 2018, arXiv:1712.01887)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from hvdtrain.core.compression.protocol import Array, Ops, Policy, State
from hvdtrain.core.update.buckets import Bucket

# The paper's warm-up: 25 % at first, then a quarter of that, and so on.
_WARMUP_FACTOR = 0.25


class DGC(Policy):
    """Sends some elements of a bucket; the others wait in the residual.

    State: `residual` and, with momentum correction, `momentum`; both as the bucket.

    Attributes:
        ratio: share of a bucket's elements that a rank sends, at least one element.
        use_error_feedback: whether what was not sent is added to the next update's gradients.
        momentum: momentum correction: momentum is taken before the selection, and the optimizer must have
            none of its own; 0 turns it off.
        local_clipping: L2 norm that a bucket of the summed gradients should not exceed: each rank's share is
            limited to this / sqrt(ranks) before it meets the residual.
        warmup_steps: updates in which the ratio falls from 0.25 to `ratio`, by a factor of 4 at a time.
    """

    residuals: ClassVar[frozenset[str]] = frozenset({"residual", "momentum"})
    ratio: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    use_error_feedback: bool = True
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    local_clipping: Annotated[float, Field(gt=0.0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _momentum_needs_error_feedback(self) -> DGC:
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

    def count(self, bucket: Bucket) -> int:
        """How many elements are sent."""
        return max(1, math.ceil(self.ratio * bucket.size))

    def waiting(self, ops: Ops, flat: Array, state: State) -> tuple[Array, Array]:
        """This update's step and, with all that was not sent before, what there is to choose from."""
        step = self._step(ops, flat, state)
        return step, step + state["residual"] if self.use_error_feedback else step

    def left(self, ops: Ops, step: Array, waiting: Array, indices: Array, values: Array) -> State:
        """The new state when `values`, the elements of `waiting` at `indices`, have been sent."""
        found: State = {}
        if self.momentum:
            found["momentum"] = ops.scatter_add(step, indices, -ops.take(step, indices))
        if self.use_error_feedback:
            found["residual"] = ops.scatter_add(waiting, indices, -values)
        return found

    def _step(self, ops: Ops, flat: Array, state: State) -> Array:
        if self.local_clipping is not None:
            row = ops.reshape(flat, (1, -1))
            norm = ops.reshape(ops.matmul(row, row, transpose_right=True), ()) ** 0.5
            flat = flat * ops.clip(self.local_clipping / ops.ranks**0.5 / norm, 0.0, 1.0)
        return flat + self.momentum * state["momentum"] if self.momentum else flat
