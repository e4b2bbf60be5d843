"""Distributed training in Keras 3's `compile` and `fit`, under the names of `horovod.keras`.

The backend is TensorFlow. What is not here is as in `horovod.tensorflow`.
"""

from __future__ import annotations

from typing import Any

import hvdtrain.tensorflow  # noqa: F401 (sets what TensorFlow and Keras read when they are first imported)

# isort: split
import keras
import tensorflow as tf
from horovod.tensorflow import (
    Adasum,
    Average,
    Compression,
    Sum,
    allgather_object,
    broadcast_object,
    ccl_built,
    cross_rank,
    cross_size,
    cuda_built,
    ddl_built,
    gloo_built,
    gloo_enabled,
    is_initialized,
    local_rank,
    local_size,
    mpi_built,
    mpi_enabled,
    mpi_threads_supported,
    nccl_built,
    rank,
    rocm_built,
    shutdown,
    size,
    start_timeline,
    stop_timeline,
)
from horovod.tensorflow import allgather as _allgather
from horovod.tensorflow import allreduce as _allreduce
from horovod.tensorflow import broadcast as _broadcast

from hvdtrain.core.errors import TrainingError
from hvdtrain.keras import callbacks
from hvdtrain.keras.optimizer import DistributedOptimizer
from hvdtrain.tensorflow.dropin.messages import broadcast_variables
from hvdtrain.tensorflow.dropin.session import init

if keras.backend.backend() != "tensorflow":
    raise TrainingError(
        f"hvdtrain.keras needs Keras on TensorFlow (found {keras.backend.backend()}): set "
        "KERAS_BACKEND=tensorflow before keras is imported; PyTorch has hvdtrain.torch"
    )

__all__ = [
    "Adasum",
    "Average",
    "Compression",
    "DistributedOptimizer",
    "Sum",
    "allgather",
    "allgather_object",
    "allreduce",
    "broadcast",
    "broadcast_object",
    "broadcast_variables",
    "callbacks",
    "ccl_built",
    "cross_rank",
    "cross_size",
    "cuda_built",
    "ddl_built",
    "gloo_built",
    "gloo_enabled",
    "init",
    "is_initialized",
    "load_model",
    "local_rank",
    "local_size",
    "mpi_built",
    "mpi_enabled",
    "mpi_threads_supported",
    "nccl_built",
    "rank",
    "rocm_built",
    "shutdown",
    "size",
    "start_timeline",
    "stop_timeline",
]


def allreduce(value: Any, name: str | None = None, average: bool = True, op: int | None = None) -> tf.Tensor:
    """Reduce a value over all ranks.

    Args:
        value: a number, array or tensor, of one shape on all ranks.
        name: the same on every rank.
        average: whether the mean is wanted, else the sum.
        op: `Average`, `Sum` or `Adasum`, instead of `average`.

    Returns:
        The result, on every rank.
    """
    chosen = op if op is not None else Average if average else Sum
    return _allreduce(tf.convert_to_tensor(value), name=name, op=chosen)


def allgather(value: Any, name: str | None = None) -> tf.Tensor:
    """Every rank's value behind the others' along the first axis; first axes may differ in length."""
    return _allgather(tf.convert_to_tensor(value), name=name)


def broadcast(value: Any, root_rank: int, name: str | None = None) -> tf.Tensor:
    """One rank's value."""
    return _broadcast(tf.convert_to_tensor(value), root_rank, name=name)


def load_model(filepath: str, custom_objects: dict[str, Any] | None = None, **arguments: Any) -> keras.Model:
    """Load a `.keras` file with its optimizer distributed.

    Args:
        filepath: of the file.
        custom_objects: as of `keras.models.load_model`.
        **arguments: of `DistributedOptimizer`.

    Returns:
        The compiled model, ready for `fit`.
    """
    model = keras.models.load_model(filepath, custom_objects=custom_objects)
    if model.optimizer is None:
        raise TrainingError(f"{filepath}: was saved without an optimizer: load it by keras and compile it")
    DistributedOptimizer(model.optimizer, **arguments)
    return model
