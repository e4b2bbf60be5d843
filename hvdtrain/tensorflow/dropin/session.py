"""Joining a Horovod job from a program that is not a job script."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvdtrain.core.dropin import left_alone
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.process.environment import horovod_environment, stall_environment
from hvdtrain.core.process.host import usable_cores
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.sections import CommunicationSpec


def init(*arguments: Any, **options: Any) -> None:
    """Join the job: Horovod's own `init`, with a limit to how long ranks wait for one that does not come.

    Each rank takes its share of the host's cores unless the program has chosen threads. If the program does
    not catch the error of a collective, one sentence replaces TensorFlow's description of the graph.

    Args:
        *arguments: Horovod's.
        **options: Horovod's.
    """
    horovod_environment(CommunicationSpec())
    stall_environment()
    hvd.init(*arguments, **options)
    _tell_of_what_is_not_caught()
    world = World(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), usable_cores())
    threading = tf.config.threading
    try:
        if not threading.get_intra_op_parallelism_threads():
            threading.set_intra_op_parallelism_threads(world.threads(None))
    except RuntimeError:
        # TensorFlow has started: the program has computed something, and keeps what it has.
        return


def require_init(what: str) -> None:
    """Refuse to go on in a process that has not joined.

    Raises:
        TrainingError: saying what to call.
    """
    if not hvd.is_initialized():
        raise TrainingError(f"{what} was called before init(): call hvd.init() first, on every rank")


@contextmanager
def waiting_for_ranks(what: str) -> Iterator[None]:
    """Say what was waited for when Horovod gives up.

    Args:
        what: the reason for a collective inside.

    Raises:
        TrainingError: in place of TensorFlow's error.
    """
    try:
        yield
    except tf.errors.OpError as error:
        told = explained(error, what)
        if told is None:
            raise
        raise told from None


def explained(error: BaseException, what: str) -> TrainingError | None:
    """What an error of TensorFlow's is about, where that is ranks.

    Args:
        error: with an account of the graph and of Python's stack in its message.
        what: was waited for.

    Returns:
        Our own error, where it was raised inside the graph; another for one of Horovod's; else None.
    """
    if not isinstance(error, tf.errors.OpError):
        return None
    text = str(error.message)
    if ours := re.search(r"^(?:hvdtrain\.core\.errors\.)?TrainingError: (.+)$", text, re.MULTILINE):
        return TrainingError(ours[1])
    if not re.search(r"\[Op:Horovod|, in horovod_\w+\n\n", text):
        return None
    # The account comes first, what Horovod said behind it, and the place in the graph last.
    said = re.split(r"\n\n|\}\} ", re.split(r"\s*\[\[|\s*\[Op:", text)[0])[-1]
    return left_alone(what, "hvdtrain.tensorflow", said)


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
    # A rank without samples has no mean: its NaN must not count.
    sums = [float(value) * weight if weight else 0.0 for value in found.values()]
    with waiting_for_ranks(name):
        every = hvd.allreduce(tf.constant([*sums, weight], tf.float64), op=hvd.Sum, name=name)
    *sums, total = every.numpy().tolist()
    means = {key: each / total if total else float("nan") for key, each in zip(found, sums, strict=True)}
    return means if isinstance(values, Mapping) else means["value"]


@functools.cache
def _tell_of_what_is_not_caught() -> None:
    """The user's own compiled step has no place where its errors could be caught by us."""
    plain = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        told = explained(error, "a step")
        if told is None:
            plain(kind, error, trace)
        else:
            plain(type(told), told, trace)

    sys.excepthook = hook
