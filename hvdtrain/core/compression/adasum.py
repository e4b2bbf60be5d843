"""Adasum: parallel gradients are averaged, orthogonal ones added (Maleki et al. 2021, arXiv:2006.02924)."""

from __future__ import annotations

from typing import ClassVar, Literal

from hvdtrain.core.compression.protocol import AdasumReduce, Array, Ops, Policy, Reduction, State
from hvdtrain.core.errors import SpecError
from hvdtrain.core.update.buckets import Bucket


class Adasum(Policy):
    """Combines gradients by Horovod's Adasum instead of summing them, each weight by itself.

    What enters is each rank's gradient of its own mean loss, divided by the rank's own weight: n equal
    gradients give that gradient, n orthogonal ones their sum. So one update depends on how the batch is cut.
    """

    elementwise: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    own_mean: ClassVar[bool] = True
    type: Literal["adasum"] = "adasum"

    def check(self, ranks: int, mpi: bool = True) -> None:
        """Horovod combines pairs of pairs, and only in its MPI operations on the CPU by this rule."""
        if ranks & (ranks - 1):
            raise SpecError(
                "compression.type: adasum combines ranks in pairs and needs 1, 2, 4, 8, ... of them, "
                f"found {ranks}: start another number of ranks, or choose another type"
            )
        if not mpi:
            raise SpecError(
                "compression.type: adasum needs Horovod's MPI operations on CPUs (Gloo has no Adasum, and "
                "NCCL's averages inside a host first): start the job with mpirun or "
                "`hvdtrain run --wire mpi`, or choose another type"
            )

    def divisor(self, own: float, total: float) -> float:
        """The rank's own weight; a rank without data has no gradient to divide."""
        return own or 1.0

    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """One request, in which every weight keeps its own dot products."""
        combined = yield AdasumReduce(flat, bucket.sizes)
        return combined, state

    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Every element once."""
        return bucket.size * itemsize
