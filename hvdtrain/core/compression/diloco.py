"""DiLoCo: an outer Nesterov step on what ranks learned alone (Douillard et al. 2023, arXiv:2311.08105)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hvdtrain.core.compression.periodic import Local, Periodic
from hvdtrain.core.compression.protocol import AllReduce, Array, Ops, Policy, Reduction, State
from hvdtrain.core.spec.sections import Count, Probability
from hvdtrain.core.update.buckets import Bucket


class DiLoCo(Periodic):
    """Takes the outer weights minus the ranks' mean for a gradient, and goes on from the outer step's result.

    The outer step is PyTorch's SGD with Nesterov momentum. State, the same on every rank: `outer` (the
    weights after the last exchange) and `momentum`, both as the bucket.

    Attributes:
        sync_every: updates from one outer step to the next; H in the paper, which takes 500.
        outer_learning_rate: of the outer step; 1 with no momentum is plain averaging.
        outer_momentum: of the outer step.
    """

    type: Literal["diloco"] = "diloco"
    sync_every: Count = 100
    outer_learning_rate: Annotated[float, Field(gt=0.0)] = 0.7
    outer_momentum: Probability = 0.9

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing has moved yet; `opening` fills in the outer weights."""
        return {name: ops.zeros((bucket.size,), dtype) for name in ("outer", "momentum")}

    def opening(self) -> Policy:
        """The weights that the first outer step starts from."""
        return _Remember()

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce of the weights."""
        total = yield AllReduce(flat)
        delta = state["outer"] - total / ops.ranks
        momentum = self.outer_momentum * state["momentum"] + delta
        step = delta + self.outer_momentum * momentum
        outer = state["outer"] - self.outer_learning_rate * step
        return outer, {"outer": outer, "momentum": momentum}


class _Remember(Local):
    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        yield from ()
        # A copy: the weights themselves are about to move.
        return flat, state | {"outer": ops.concat([flat])}
