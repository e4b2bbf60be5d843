"""Joining a Horovod job, and small collectives on NumPy arrays."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from hvdtrain.core.process.environment import horovod_environment
from hvdtrain.core.process.host import keep_freed_memory, usable_cores
from hvdtrain.core.random import framework_seed
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.job_spec import JobSpec


def init(spec: JobSpec) -> Ranks:
    """Join the job, pin this rank to its share of the cores (or its GPU), and seed the framework.

    Args:
        spec: the job; its communication and thread settings take effect here.

    Returns:
        All ranks of the job, as this one sees them.
    """
    horovod_environment(spec.communication, spec.zero_stage)
    keep_freed_memory(spec.zero_stage)
    hvd.init()
    ranks = all_ranks()
    world = ranks.world
    torch.set_num_threads(world.threads(spec.num_threads))
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    torch.manual_seed(framework_seed(spec.seed, world.rank))
    return ranks


def all_ranks() -> Ranks:
    """All ranks of the job that this process has joined, as this one sees them."""
    cores, mpi = usable_cores(), reduces_over_mpi()
    world = World(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), cores, mpi)
    return Ranks(world, sum_over_ranks, broadcast, gather_bytes)


def reduces_over_mpi() -> bool:
    """Whether MPI carries collectives: Horovod has joined with it, and NCCL has no GPU to take them over."""
    return bool(hvd.mpi_enabled()) and not _over_nccl()


def reduces_over_gloo() -> bool:
    """Whether Gloo carries collectives, not MPI or NCCL."""
    return not hvd.mpi_enabled() and not _over_nccl()


def device() -> torch.device:
    """Where this rank computes: its GPU when there is one, else the CPU."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def sum_over_ranks(values: np.ndarray, name: str) -> np.ndarray:
    """Element-wise sum over all ranks.

    Args:
        values: any shape and dtype Horovod can send.
        name: the same on every rank.

    Returns:
        The sum, same shape and dtype.
    """
    return hvd.allreduce(torch.from_numpy(values), op=hvd.Sum, name=name).numpy()


def broadcast(values: np.ndarray, name: str) -> np.ndarray:
    """Rank 0's copy of an array; arguments as `sum_over_ranks`."""
    return hvd.broadcast(torch.from_numpy(values), root_rank=0, name=name).numpy()


def gather_bytes(data: bytes, name: str, process_set: Any = hvd.global_process_set) -> list[bytes]:
    """Every rank's bytes, in the order of ranks; ranks of the other framework may take part.

    Args:
        data: of any length above 0.
        name: the same on every rank.
        process_set: the ranks that take part.
    """
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    length = torch.tensor([len(own)])
    lengths = hvd.allgather(length, name=f"{name}.lengths", process_set=process_set).tolist()
    every = hvd.allgather(own, name=name, process_set=process_set)
    return [part.numpy().tobytes() for part in every.split(lengths)]


def shutdown() -> None:
    """Leave the job in good order; every rank calls it."""
    hvd.shutdown()


def _over_nccl() -> bool:
    return bool(hvd.nccl_built() and torch.cuda.is_available())
