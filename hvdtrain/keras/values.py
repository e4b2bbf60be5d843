"""Collectives on whatever becomes a tensor."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf


def allreduce(
    value: Any,
    name: str | None = None,
    average: bool | None = True,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: int | None = None,
    compression: Any = None,
) -> tf.Tensor:
    """Reduce a value over all ranks.

    Args:
        value: a number, array or tensor, of one shape on all ranks.
        name: the same on every rank.
        average: whether the mean is wanted, else the sum; None: it is.
        prescale_factor: multiplied with before the reduction.
        postscale_factor: multiplied with after it.
        op: `Average`, `Sum` or `Adasum`, instead of `average`.
        compression: `Compression.none` or `Compression.fp16`.

    Returns:
        The result, on every rank.
    """
    chosen = op if op is not None else hvd.Average if average in (True, None) else hvd.Sum
    return hvd.allreduce(
        tf.convert_to_tensor(value),
        name=name,
        op=chosen,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        compression=compression or hvd.Compression.none,
    )


def allgather(value: Any, name: str | None = None) -> tf.Tensor:
    """Every rank's value behind the others' along the first axis; first axes may differ in length."""
    return hvd.allgather(tf.convert_to_tensor(value), name=name)


def broadcast(value: Any, root_rank: int, name: str | None = None) -> tf.Tensor:
    """One rank's value."""
    return hvd.broadcast(tf.convert_to_tensor(value), root_rank, name=name)


def reducescatter(value: Any, name: str | None = None, op: int | None = None) -> tf.Tensor:
    """Reduce a value over all ranks, and give each an equal share of its first axis.

    Args:
        value: of one shape on all ranks.
        name: the same on every rank.
        op: `Average`, the default, or `Sum`.
    """
    return hvd.reducescatter(tf.convert_to_tensor(value), name=name, op=hvd.Average if op is None else op)
