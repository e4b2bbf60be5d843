"""Joining a Horovod job, and small collectives on NumPy arrays."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.process.environment import horovod_environment, keep_freed_memory, usable_cores
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
    horovod_environment(spec.communication)
    keep_freed_memory()
    hvd.init()
    cores, mpi = usable_cores(), reduces_over_mpi()
    world = World(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), cores, mpi)
    threads = world.threads(spec.num_threads)
    # A program of the user's may have computed with TensorFlow already, which then keeps its threads.
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        # What a collective makes ready stands behind the queue of TensorFlow's thread, what that thread
        # itself makes ready before it: without one more, a policy's next collective would wait for backward.
        tf.config.threading.set_inter_op_parallelism_threads(threads + 1)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        _take_gpu(gpus[world.local_rank % len(gpus)])
    keras.utils.set_random_seed(framework_seed(spec.seed, world.rank))
    return Ranks(world, sum_over_ranks, broadcast, gather_bytes)


def _take_gpu(gpu: tf.config.PhysicalDevice) -> None:
    try:
        tf.config.set_visible_devices(gpu, "GPU")
    except RuntimeError:
        raise TrainingError(
            "TensorFlow has used a GPU before the job was joined, and no rank can be given its own any more: "
            "compute nothing with it before hvdtrain.train is called"
        ) from None


def reduces_over_mpi() -> bool:
    """Whether MPI carries collectives: Horovod has joined with it, and NCCL has no GPU to take them over."""
    nccl = hvd.nccl_built() and tf.config.list_physical_devices("GPU")
    return bool(hvd.mpi_enabled()) and not nccl


def device() -> str:
    """Where this rank computes: its GPU when there is one, else the CPU."""
    return "/GPU:0" if tf.config.list_logical_devices("GPU") else "/CPU:0"


def sum_over_ranks(values: np.ndarray, name: str) -> np.ndarray:
    """Element-wise sum over all ranks.

    Args:
        values: any shape and dtype Horovod can send.
        name: the same on every rank.

    Returns:
        The sum, same shape and dtype.
    """
    return hvd.allreduce(tf.constant(values), op=hvd.Sum, name=name).numpy()


def broadcast(values: np.ndarray, name: str) -> np.ndarray:
    """Rank 0's copy of an array; arguments as `sum_over_ranks`."""
    return hvd.broadcast(tf.constant(values), root_rank=0, name=name).numpy()


def gather_bytes(data: bytes, name: str, process_set: Any = hvd.global_process_set) -> list[bytes]:
    """Every rank's bytes, in the order of ranks; ranks of the other framework may take part.

    Args:
        data: of any length above 0.
        name: the same on every rank.
        process_set: the ranks that take part.
    """
    with tf.device("/CPU:0"):
        lengths = _allgather(tf.constant([len(data)], tf.int64), f"{name}.lengths", process_set)
        every = _allgather(tf.constant(np.frombuffer(data, np.uint8)), name, process_set)
    return [part.tobytes() for part in np.split(every, np.cumsum(lengths)[:-1])]


def _allgather(values: tf.Tensor, name: str, process_set: Any) -> np.ndarray:
    # Only in a graph does Horovod take the name; in PyTorch it puts its own word before it.
    gather = tf.function(
        lambda array: hvd.allgather(
            array, name=f"allgather.{name}", ignore_name_scope=True, process_set=process_set
        ),
        autograph=False,
    )
    # Not called itself: TensorFlow warns of functions that are made again and again.
    return gather.get_concrete_function(values)(values).numpy()


def shutdown() -> None:
    """Leave the job in good order; every rank calls it."""
    hvd.shutdown()
