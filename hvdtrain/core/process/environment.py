"""What must stand in the environment before Horovod starts, and what launchers leave there."""

from __future__ import annotations

import os

from hvdtrain.core.plan.plan import CYCLE_TIME_MS
from hvdtrain.core.spec.sections import CommunicationSpec

_MIB = 2**20
# Horovod looks every so many seconds, the first, and warns. What has been sent before counts from its second
# look on, so a stall ends after 50 to 66 seconds; the longer the first, the wider apart these are.
STALL_CHECK_SECONDS, STALL_SHUTDOWN_SECONDS = 6, 50
_RANK_VARIABLES = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


def horovod_environment(communication: CommunicationSpec, zero_stage: int = 0) -> None:
    """Set Horovod's knobs for this process; call before `hvd.init()`, which reads them once.

    Args:
        communication: a value given here wins over the environment; defaults do not.
        zero_stage: where it shards, tensors are not fused by default: buckets are large, and the buffer that
            Horovod copies them into takes 128 MiB.
    """
    if communication.cycle_time_ms is not None:
        os.environ["HOROVOD_CYCLE_TIME"] = str(communication.cycle_time_ms)
    os.environ.setdefault("HOROVOD_CYCLE_TIME", str(CYCLE_TIME_MS))
    if communication.fusion_threshold_mb is not None:
        os.environ["HOROVOD_FUSION_THRESHOLD"] = str(int(communication.fusion_threshold_mb * _MIB))
    elif zero_stage:
        os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
    # Open MPI 4.1 spins while it waits, which takes the core from a computing rank beside it.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    # Over a slow TCP link the directions take turns otherwise (hvdtrain.launch.commands says why).
    os.environ.setdefault("OMPI_MCA_btl_tcp_flags", "send,inplace")


def stall_environment() -> None:
    """End the wait for a rank that does not come, unless the user has said when; call before `hvd.init()`."""
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(STALL_CHECK_SECONDS))
    # Horovod's default is to wait for ever.
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(STALL_SHUTDOWN_SECONDS))


def launched_rank() -> int | None:
    """The rank that a launcher gave this process, known before Horovod starts; None without a launcher."""
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if name in os.environ), None)
