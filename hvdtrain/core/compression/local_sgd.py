"""Local SGD: weights are averaged every so many updates (Stich 2019, arXiv:1805.09767).

With `start_localSGD_iter` it is post-local SGD (Lin et al. 2020, arXiv:1808.07217), with `overlap` CoCoD-SGD
(Shen et al. 2019, arXiv:1906.12043).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.periodic import Local, Periodic
from hvdtrain.core.compression.protocol import AllReduce, Array, Ops, Policy, Reduction, State
from hvdtrain.core.spec.sections import Count
from hvdtrain.core.update.buckets import Bucket


class LocalSGD(Periodic):
    """Replaces the weights by their mean over ranks, each rank counting the same.

    With `overlap` there is state: `sent`, the weights that a rank gave to the last mean, and `mean`, both as
    the bucket. Ranks go on from `sent` while it is taken, and move by `mean` - `sent` when the next is due.

    Attributes:
        sync_every: updates from one averaging to the next.
        start_localSGD_iter: updates at the start that sum gradients as `none` does; PyTorch's name.
        overlap: whether a mean is taken while the next updates run, and counts when they are done. Before an
            evaluation, a checkpoint and the end ranks wait for it all the same.
    """

    type: Literal["local_sgd"] = "local_sgd"
    sync_every: Count = 4
    start_localSGD_iter: Annotated[int, Field(ge=0)] = 0
    overlap: bool = False

    def at(self, update: int) -> Policy:
        """Gradients are summed during the first `start_localSGD_iter` updates."""
        return super().at(update) if update > self.start_localSGD_iter else NoCompression()

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """Nothing, or what `opening` fills in."""
        return {name: ops.zeros((bucket.size,), dtype) for name in ("sent", "mean") if self.overlap}

    def opening(self) -> Policy:
        """The first mean is that of weights which are the same everywhere: those weights."""
        return _Meet() if self.overlap else super().opening()

    @property
    def background(self) -> tuple[Policy, Policy] | None:
        """Joining the last mean, and taking the next."""
        return (_Join(), _Average()) if self.overlap else None

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce of the weights."""
        total = yield AllReduce(_joined(flat, state) if self.overlap else flat)
        mean = total / ops.ranks
        return mean, dict.fromkeys(state, mean)


def _joined(flat: Array, state: State) -> Array:
    return flat + (state["mean"] - state["sent"])


class _Meet(Local):
    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        yield from ()
        # A copy: the weights themselves are about to move.
        start = ops.concat([flat])
        return flat, {"sent": start, "mean": start}


class _Join(Local):
    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        yield from ()
        joined = _joined(flat, state)
        return joined, state | {"sent": joined}


class _Average(Local):
    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        # A copy: an allreduce may reuse the memory of what it is given.
        total = yield AllReduce(ops.concat([state["sent"]]))
        return flat, state | {"mean": total / ops.ranks}

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        return bucket.size * itemsize
