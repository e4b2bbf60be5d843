"""Collectives on whatever becomes a tensor."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf


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
    chosen = op if op is not None else hvd.Average if average else hvd.Sum
    return hvd.allreduce(tf.convert_to_tensor(value), name=name, op=chosen)


def allgather(value: Any, name: str | None = None) -> tf.Tensor:
    """Every rank's value behind the others' along the first axis; first axes may differ in length."""
    return hvd.allgather(tf.convert_to_tensor(value), name=name)


def broadcast(value: Any, root_rank: int, name: str | None = None) -> tf.Tensor:
    """One rank's value."""
    return hvd.broadcast(tf.convert_to_tensor(value), root_rank, name=name)
