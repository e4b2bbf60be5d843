"""Bytes and variables between ranks, outside of the compiled step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.errors import SpecError
from hvdtrain.core.run.ranks import in_pieces
from hvdtrain.tensorflow.dropin.agreement import check_structure, parameters_of
from hvdtrain.tensorflow.dropin.session import require_init, waiting_for_ranks

# Enough that few are needed, little beside the variables themselves.
_CHUNK_BYTES = 64 * 2**20


def broadcast_bytes(message: bytes, root_rank: int = 0) -> bytes:
    """The bytes of one rank; the others' do not matter. Every rank calls it."""
    with tf.init_scope(), waiting_for_ranks("a message"):
        size = hvd.broadcast(tf.constant([len(message)], tf.int64), root_rank, name="hvdtrain.size").numpy()
        mine = message if hvd.rank() == root_rank else bytes(int(size[0]))
        return in_pieces(np.frombuffer(mine, np.uint8), partial(_broadcast_piece, root_rank)).tobytes()


@tf.autograph.experimental.do_not_convert
def broadcast_variables(variables: Iterable[tf.Variable], root_rank: int = 0) -> None:
    """Give every rank one rank's values; every rank calls it with the same variables.

    Args:
        variables: of any shapes and dtypes, TensorFlow's or Keras'; inside a `tf.function` as well.
        root_rank: whose values.

    Raises:
        SpecError: something else is given, such as the model itself.
        TrainingError: ranks differ in number, shapes or dtypes.
    """
    require_init("broadcast_variables")
    given = _listed(variables)
    check_root("broadcast_variables", root_rank)
    if not tf.executing_eagerly():
        for i, variable in enumerate(given):
            _broadcast_in_the_graph(variable, root_rank, f"hvdtrain.broadcast.{i}")
        return
    # An optimizer's are named after the model's, whose names differ where one rank has loaded it.
    check_structure([replace(each, shared_name="a variable") for each in parameters_of(given)])
    for chunk in _chunks(given):
        arrays = [np.ascontiguousarray(variable.numpy()) for variable in chunk]
        message = broadcast_bytes(b"".join(a.tobytes() for a in arrays), root_rank)
        offset = 0
        for variable, array in zip(chunk, arrays, strict=True):
            found = np.frombuffer(message, array.dtype, array.size, offset).reshape(variable.shape)
            variable.assign(found)
            offset += array.nbytes


def check_root(call: str, root_rank: Any) -> None:
    """Refuse what is no rank.

    Args:
        call: to which function, for errors.
        root_rank: given to it.

    Raises:
        SpecError: saying which there are.
    """
    if not isinstance(root_rank, int) or not 0 <= root_rank < hvd.size():
        found = root_rank if isinstance(root_rank, int) else f"a {type(root_rank).__name__}"
        raise SpecError(f"{call}: root_rank: expected a rank from 0 to {hvd.size() - 1} (found {found})")


def _listed(variables: Any) -> list[tf.Variable]:
    one = hasattr(variables, "assign") or hasattr(variables, "shape")
    listed = not one and isinstance(variables, Iterable) and not isinstance(variables, Mapping | str)
    found = list(variables) if listed else [variables]
    for each in found:
        if not listed or not hasattr(each, "assign"):
            raise SpecError(
                "broadcast_variables: expected a list of variables, as model.weights or optimizer.variables "
                f"(found a {type(each).__name__}{' among them' if listed else ''})"
            )
    return found


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


def _broadcast_piece(root_rank: int, piece: np.ndarray) -> np.ndarray:
    return hvd.broadcast(tf.constant(piece), root_rank, name="hvdtrain.message").numpy()


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
