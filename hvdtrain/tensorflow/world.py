"""Joining a Horovod job, and small collectives on NumPy arrays."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from hvdtrain.core.errors import TrainingError
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
    # A float32 product is one of float32 numbers, as it is in PyTorch: TF32 keeps 10 of their 23 bits.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    _take_gpu(world)
    _take_threads(world, world.threads(spec.num_threads))
    seed = framework_seed(spec.seed, world.rank)
    keras.utils.set_random_seed(seed)
    # It would else start anywhere.
    tf.random.set_global_generator(tf.random.Generator.from_seed(seed))
    return ranks


def all_ranks() -> Ranks:
    """All ranks of the job that this process has joined, as this one sees them."""
    cores, mpi = usable_cores(), reduces_over_mpi()
    world = World(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), cores, mpi)
    return Ranks(world, sum_over_ranks, broadcast, gather_bytes)


def _take_gpu(world: World) -> None:
    gpus = tf.config.list_physical_devices("GPU")
    own = gpus[world.local_rank % len(gpus)] if gpus else None
    # A program that trains twice has it already.
    if own is None or tf.config.get_visible_devices("GPU") == [own]:
        return
    try:
        tf.config.set_visible_devices(own, "GPU")
    except RuntimeError as error:
        raise TrainingError(
            f"TensorFlow was used before training has started, and can no longer be given one GPU ({error}): "
            "call hvdtrain.train first, and prepare data with NumPy"
        ) from None


def _take_threads(world: World, threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        # What a collective makes ready stands behind the queue of TensorFlow's thread, what that thread
        # itself makes ready before it: without one more, a policy's next collective would wait for backward.
        tf.config.threading.set_inter_op_parallelism_threads(threads + 1)
    except RuntimeError:
        # A program of the user's may have computed with TensorFlow before, which is when it takes threads.
        if world.is_chief:
            print(
                "TensorFlow was used before training has started and keeps the threads it has; for "
                f"{threads} on each rank call hvdtrain.train first",
                flush=True,
            )


def reduces_over_mpi() -> bool:
    """Whether MPI carries collectives: Horovod has joined with it, and NCCL has no GPU to take them over."""
    return bool(hvd.mpi_enabled()) and not _over_nccl()


def reduces_over_gloo() -> bool:
    """Whether Gloo carries collectives, not MPI or NCCL."""
    return not hvd.mpi_enabled() and not _over_nccl()


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


def _over_nccl() -> bool:
    return bool(hvd.nccl_built() and tf.config.list_physical_devices("GPU"))
