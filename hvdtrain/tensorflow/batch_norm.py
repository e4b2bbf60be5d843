"""Batch norm over the real rows of a micro-batch, of this rank or of all."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvdtrain.core.families.batch_norm import (
    Moments,
    at_least_one,
    inverse_deviation,
    is_recomputed,
    merge,
    moved,
)


def batch_norm(
    x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor, rows: tf.Tensor, name: str | None
) -> tuple[tf.Tensor, Moments]:
    """Normalise each channel by its statistics, and scale and shift it.

    Args:
        x: (rows, height, width, channels).
        weight: the scale, (channels,).
        bias: (channels,).
        rows: 1 for each real row and 0 beyond the data, (rows,).
        name: of the layer, the same on all ranks and no other's: statistics are those of all ranks' rows,
            and each rank calls this equally often. None: they are this rank's own, and nothing is sent.

    Returns:
        The output, of x's shape and dtype, and the moments, float64, for `keep`.
    """
    rows = tf.stop_gradient(tf.cast(rows, weight.dtype))

    @tf.custom_gradient
    def normalize(x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Any]:
        whole = tf.cast(x, weight.dtype)
        moments = _moments(whole, rows)
        if name is not None:
            moments = _of_all_ranks(moments, name)
        found = moments.mean, inverse_deviation(_KERNELS, moments)
        mean, inverse = (tf.cast(t, weight.dtype) for t in found)
        # A row beyond the data becomes the bias: by others' statistics it might grow from layer to layer.
        output = (whole - mean) * (inverse * weight * rows[:, None, None, None]) + bias

        def backward(upstream: tf.Tensor, *_: Any) -> tuple[tf.Tensor, ...]:
            gradient = tf.cast(upstream, weight.dtype)
            normal = (tf.cast(x, weight.dtype) - mean) * inverse
            # Of the loss with respect to bias and weight: this rank's own, which the buckets sum over ranks.
            own = tf.stack([tf.reduce_sum(t, (0, 1, 2)) for t in (gradient, gradient * normal)])
            sums = own
            if name is not None:
                sums = hvd.allreduce(own, op=hvd.Sum, name=f"{name}.backward", ignore_name_scope=True)
                sums = tf.ensure_shape(sums, own.shape)
            count = tf.cast(at_least_one(_KERNELS, moments.count), weight.dtype)
            through_mean, through_variance = tf.unstack(sums / count)
            # A row beyond the data has no part in mean and variance.
            shared = (through_mean + normal * through_variance) * rows[:, None, None, None]
            found = (gradient - shared) * (inverse * weight)
            return tf.cast(found, x.dtype), own[1], own[0]

        return (tf.cast(output, x.dtype), *moments), backward

    output, *moments = normalize(x, tf.convert_to_tensor(weight), tf.convert_to_tensor(bias))
    return output, Moments(*moments)


def keep(mean: tf.Variable, variance: tf.Variable, moments: Moments) -> None:
    """Move the running statistics, unless this forward pass is a repeated one.

    Args:
        mean: the running one, (channels,); overwritten, as the variance.
        variance: the running one, (channels,).
        moments: of the micro-batch.
    """
    if not is_recomputed():
        found = moved(_KERNELS, tf.cast(mean, tf.float64), tf.cast(variance, tf.float64), moments)
        mean.assign(tf.cast(found[0], mean.dtype))
        variance.assign(tf.cast(found[1], variance.dtype))


class _Kernels:
    """See `Kernels` of `hvdtrain.core.families.batch_norm`."""

    def total(self, array: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(array, 0)

    def where(self, condition: tf.Tensor, array: tf.Tensor, other: Any) -> tf.Tensor:
        return tf.where(condition, array, other)

    def isfinite(self, array: tf.Tensor) -> tf.Tensor:
        return tf.math.is_finite(array)


_KERNELS = _Kernels()


def _moments(x: tf.Tensor, rows: tf.Tensor) -> Moments:
    """Of each channel of this rank's real rows."""
    size = float(x.shape[1] * x.shape[2])
    means, variances = (tf.cast(t, tf.float64) for t in tf.nn.moments(x, [1, 2]))
    counts = tf.cast(rows, tf.float64)[:, None] * size
    return merge(_KERNELS, Moments(counts, means, counts * variances))


def _of_all_ranks(moments: Moments, name: str) -> Moments:
    channels = moments.mean.shape[0]
    every = hvd.allgather(tf.concat(moments, 0)[None], name=f"{name}.forward", ignore_name_scope=True)
    every = tf.ensure_shape(every, [None, 1 + 2 * channels])
    return merge(_KERNELS, Moments(*tf.split(every, [1, channels, channels], axis=1)))
