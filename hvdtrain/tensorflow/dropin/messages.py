"""Bytes and variables between ranks, outside of the compiled step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

# Enough that few are needed, little beside the variables themselves.
_CHUNK_BYTES = 64 * 2**20


def gather_bytes(message: bytes, process_set: Any = hvd.global_process_set) -> list[bytes]:
    """Every rank's bytes, which may differ in length, in the order of ranks; every rank calls it."""
    with tf.init_scope():
        length = tf.constant([len(message)], tf.int64)
        sizes = hvd.allgather(length, name="hvdtrain.sizes", process_set=process_set).numpy()
        every = hvd.allgather(_array(message), name="hvdtrain.bytes", process_set=process_set).numpy()
    return [part.tobytes() for part in np.split(every, np.cumsum(sizes)[:-1])]


def broadcast_bytes(message: bytes, root_rank: int = 0) -> bytes:
    """The bytes of one rank; the others' do not matter. Every rank calls it."""
    with tf.init_scope():
        size = hvd.broadcast(tf.constant([len(message)], tf.int64), root_rank, name="hvdtrain.size").numpy()
        mine = message if hvd.rank() == root_rank else bytes(int(size[0]))
        return hvd.broadcast(_array(mine), root_rank, name="hvdtrain.message").numpy().tobytes()


@tf.autograph.experimental.do_not_convert
def broadcast_variables(variables: Sequence[tf.Variable], root_rank: int = 0) -> None:
    """Give every rank one rank's values; every rank calls it with the same variables.

    Args:
        variables: of any shapes and dtypes, TensorFlow's or Keras'; inside a `tf.function` as well.
        root_rank: whose values.
    """
    if not tf.executing_eagerly():
        for i, variable in enumerate(variables):
            _broadcast_in_the_graph(variable, root_rank, f"hvdtrain.broadcast.{i}")
        return
    for chunk in _chunks(variables):
        arrays = [np.ascontiguousarray(variable.numpy()) for variable in chunk]
        message = broadcast_bytes(b"".join(a.tobytes() for a in arrays), root_rank)
        offset = 0
        for variable, array in zip(chunk, arrays, strict=True):
            found = np.frombuffer(message, array.dtype, array.size, offset).reshape(variable.shape)
            variable.assign(found)
            offset += array.nbytes


def _broadcast_in_the_graph(variable: tf.Variable, root_rank: int, name: str) -> None:
    value = tf.convert_to_tensor(variable)
    # Horovod does not send every dtype, but bytes.
    found = hvd.broadcast(
        tf.cast(value, tf.uint8) if value.dtype == tf.bool else tf.bitcast(value, tf.uint8),
        root_rank,
        name=name,
        ignore_name_scope=True,
    )
    found = tf.cast(found, tf.bool) if value.dtype == tf.bool else tf.bitcast(found, value.dtype)
    variable.assign(tf.ensure_shape(found, value.shape))


def _array(message: bytes) -> tf.Tensor:
    return tf.constant(np.frombuffer(message, np.uint8))


def _chunks(variables: Sequence[tf.Variable]) -> Iterator[list[tf.Variable]]:
    chunk: list[tf.Variable] = []
    size = 0
    for variable in variables:
        chunk.append(variable)
        size += int(np.prod(variable.shape)) * tf.as_dtype(variable.dtype).size
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
