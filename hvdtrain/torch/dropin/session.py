"""Joining a Horovod job from a program that is not a job script, and small collectives for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import horovod.torch as hvd
import torch

from hvdtrain.core.dropin import left_alone
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.process.environment import horovod_environment, stall_environment
from hvdtrain.core.process.host import usable_cores
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.sections import CommunicationSpec


def init(*arguments: Any, **options: Any) -> None:
    """Join the job: Horovod's own `init`, with a limit to how long ranks wait for one that does not come.

    Each rank computes on its share of the host's cores, unless OMP_NUM_THREADS is set.

    Args:
        *arguments: Horovod's.
        **options: Horovod's.
    """
    horovod_environment(CommunicationSpec())
    stall_environment()
    hvd.init(*arguments, **options)
    if "OMP_NUM_THREADS" not in os.environ:
        world = World(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), usable_cores())
        torch.set_num_threads(world.threads(None))


def require_init(what: str) -> None:
    """Refuse to go on in a process that has not joined.

    Raises:
        TrainingError: saying what to call.
    """
    if not hvd.is_initialized():
        raise TrainingError(f"{what}: this process has not joined a job: call hvdtrain.torch.init() first")


@contextmanager
def waiting_for_ranks(what: str) -> Iterator[None]:
    """Say what was waited for when Horovod gives up.

    Args:
        what: the reason for a collective inside.

    Raises:
        TrainingError: in place of Horovod's error.
    """
    try:
        yield
    except hvd.HorovodInternalError as error:
        raise left_alone(what, "hvdtrain.torch", str(error)) from None


def metric_average(
    values: float | Mapping[str, float], weight: float = 1.0, name: str = "metric_average"
) -> Any:
    """Mean of a metric over all ranks, each counting by its weight: exact however samples are spread.

    Args:
        values: this rank's mean, or several by name, the same names in the same order on every rank.
        weight: how many samples (or tokens) the mean is over; 0 is legal.
        name: of the collective.

    Returns:
        As `values`: Σ weight · value / Σ weight over ranks, in float64; NaN where no rank has any weight.
    """
    require_init("metric_average")
    found = values if isinstance(values, Mapping) else {"value": values}
    # PyTorch warns of a number that is taken from a loss with its graph.
    found = {k: each.detach() if isinstance(each, torch.Tensor) else each for k, each in found.items()}
    # A rank without samples has no mean: its NaN must not count.
    sums = [float(value) * weight if weight else 0.0 for value in found.values()]
    with waiting_for_ranks(name):
        *sums, total = hvd.allreduce(
            torch.tensor([*sums, weight], dtype=torch.float64), op=hvd.Sum, name=name
        ).tolist()
    means = {key: each / total if total else float("nan") for key, each in zip(found, sums, strict=True)}
    return means if isinstance(values, Mapping) else means["value"]
