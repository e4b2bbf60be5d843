"""Joining a job without a spec, from a program of the user's own; and what Horovod calls things."""

from __future__ import annotations

import os
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvdtrain.core.dropin import Settings, make_settings
from hvdtrain.core.environment import horovod_environment, usable_cores
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.core.sections import CommunicationSpec
from hvdtrain.core.world import World

# A rank that waits for one that has gone hears of it within a minute.
_STALL = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "20", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "45"}
# Without meaning here: buckets replace groups, sparse gradients are made dense, Horovod finds the device.
_WITHOUT_MEANING = {
    "device_dense",
    "device_sparse",
    "sparse_as_dense",
    "num_groups",
    "groups",
    "gradient_predivide_factor",
    "scale_local_gradients",
}


def init(*arguments: Any, **keywords: Any) -> None:
    """Join the job; each rank takes its share of the host's cores unless the program has chosen threads.

    Args:
        *arguments: as of `horovod.tensorflow.init`.
        **keywords: likewise.
    """
    horovod_environment(CommunicationSpec())
    for name, seconds in _STALL.items():
        os.environ.setdefault(name, seconds)
    hvd.init(*arguments, **keywords)
    world = World(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), usable_cores())
    threading = tf.config.threading
    try:
        if not threading.get_intra_op_parallelism_threads():
            threading.set_intra_op_parallelism_threads(world.threads(None))
    except RuntimeError:
        # TensorFlow has started: the program has computed something, and keeps what it has.
        return


def require_init(wrapper: str) -> None:
    """Refuse to go on where the program has not joined the job.

    Args:
        wrapper: what was called.

    Raises:
        TrainingError: saying how to join.
    """
    if not hvd.is_initialized():
        raise TrainingError(f"{wrapper} was called before init(): call hvd.init() first, on every rank")


def settings_of(wrapper: str, horovods: dict[str, Any], **ours: Any) -> Settings:
    """A wrapper's arguments, in Horovod's spelling as well.

    Args:
        wrapper: how the user calls it, for errors.
        horovods: arguments that have Horovod's names alone.
        **ours: the others; `compression` may be one of `Compression`.

    Returns:
        The settings.

    Raises:
        SpecError: an argument is unknown, or asks for what is not done here.
    """
    found = dict(ours)
    if found.get("compression") in (hvd.Compression.none, hvd.Compression.fp16):
        found["compression"] = "fp16" if found["compression"] is hvd.Compression.fp16 else "none"
    rest = {name: value for name, value in horovods.items() if name not in _WITHOUT_MEANING}
    passes, averaged = (
        rest.pop("backward_passes_per_step", None),
        rest.pop("average_aggregated_gradients", False),
    )
    if passes is not None:
        if found["gradient_accumulation_steps"] != 1:
            raise SpecError(
                f"{wrapper}: backward_passes_per_step {passes} and gradient_accumulation_steps "
                f"{found['gradient_accumulation_steps']} mean the same: give one of them"
            )
        found["gradient_accumulation_steps"] = passes
        # Horovod adds micro-batches up unless told otherwise.
        found["average"] = "mean" if averaged else "ranks"
    op = rest.pop("op", None)
    if op == hvd.Sum:
        found["average"] = "sum"
    elif op == hvd.Adasum:
        found["compression"] = "adasum"
    elif op not in (None, hvd.Average):
        raise SpecError(f"{wrapper}: op: expected Average, Sum or Adasum (found {op!r})")
    if rest.pop("process_set", hvd.global_process_set) is not hvd.global_process_set:
        raise SpecError(f"{wrapper}: process_set: gradients are reduced over all ranks; leave it out")
    if rest:
        raise SpecError(f"{wrapper}: unknown argument {', '.join(sorted(rest))}")
    return make_settings(wrapper, **found)
