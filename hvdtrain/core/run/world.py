"""Who takes part in a run: ranks, hosts and cores, as Horovod reports them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """One rank's place among all ranks.

    Attributes:
        rank: 0 … size - 1.
        size: ranks in the whole job.
        local_rank: 0 … local_size - 1, among the ranks on this host.
        local_size: ranks on this host.
        cores: processor cores this host lets the job use.
        mpi: whether tensors are reduced by Horovod's MPI operations, not by Gloo's or NCCL's.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cores: int
    mpi: bool = True

    @property
    def is_chief(self) -> bool:
        """Whether this rank writes logs, models and the progress bar."""
        return self.rank == 0

    def threads(self, asked: int | None) -> int:
        """Compute threads of one rank: what was asked for, else an even share of the host's cores."""
        return asked or max(1, self.cores // self.local_size)
