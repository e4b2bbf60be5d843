"""Joining a Horovod job from a program that is not a job script."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvdtrain.core.environment import horovod_environment, stall_environment, usable_cores
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.sections import CommunicationSpec
from hvdtrain.core.world import World


def init(*arguments: Any, **keywords: Any) -> None:
    """Join the job; each rank takes its share of the host's cores unless the program has chosen threads.

    Args:
        *arguments: as of `horovod.tensorflow.init`.
        **keywords: likewise.
    """
    horovod_environment(CommunicationSpec())
    stall_environment()
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
