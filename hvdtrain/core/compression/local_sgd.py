"""Local SGD: weights are averaged every so many updates (Stich 2019, arXiv:1805.09767).

With `start_localSGD_iter` it is post-local SGD (Lin et al. 2020, arXiv:1808.07217).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.periodic import Periodic
from hvdtrain.core.compression.protocol import AllReduce, Array, Ops, Policy, Reduction, State
from hvdtrain.core.sections import Count


class LocalSGD(Periodic):
    """Replaces the weights by their mean over ranks, each rank counting the same.

    Attributes:
        sync_every: updates from one averaging to the next.
        start_localSGD_iter: updates at the start that sum gradients as `none` does; PyTorch's name.
    """

    type: Literal["local_sgd"] = "local_sgd"
    sync_every: Count = 4
    start_localSGD_iter: Annotated[int, Field(ge=0)] = 0

    def at(self, update: int) -> Policy:
        """Gradients are summed during the first `start_localSGD_iter` updates."""
        return super().at(update) if update > self.start_localSGD_iter else NoCompression()

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One allreduce of the weights."""
        total = yield AllReduce(flat)
        return total / ops.ranks, state
