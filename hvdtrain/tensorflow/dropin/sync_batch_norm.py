"""Batch normalisation whose statistics are those of the batch of all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from hvdtrain.core.errors import SpecError
from hvdtrain.tensorflow.dropin.session import require_init

_numbers = itertools.count()


@keras.saving.register_keras_serializable("hvdtrain")
class SyncBatchNormalization(keras.layers.BatchNormalization):
    """In place of `keras.layers.BatchNormalization`; ranks may have different numbers of rows, or none.

    In training, mean and variance are those of all ranks' rows together, and so are the moving ones. The
    gradients of `gamma` and `beta` stay each rank's own: `DistributedOptimizer` reduces them as all others.
    """

    def __init__(self, fused: bool | None = False, **others: Any) -> None:
        """Arguments as of Keras' layer.

        Args:
            fused: accepted as Horovod's; False alone.
            **others: of `keras.layers.BatchNormalization`.

        Raises:
            SpecError: `fused` or `synchronized` is asked for.
        """
        if fused is not False:
            raise SpecError(f"SyncBatchNormalization: fused: expected False (found {fused!r}): leave it out")
        if others.pop("synchronized", False):
            raise SpecError("SyncBatchNormalization: synchronized is of tf.distribute: leave it out")
        super().__init__(**others)
        self._collectives = ""

    def _moments(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        # Called by Keras in training.
        require_init("SyncBatchNormalization")
        # By the order of first use: ranks may have made other layers before, as by loading a model.
        self._collectives = self._collectives or f"sync_batch_norm{next(_numbers)}"
        weights = tf.ones_like(inputs)
        if mask is not None:
            weights = tf.broadcast_to(tf.cast(mask, inputs.dtype)[..., None], tf.shape(inputs))
        mean, variance, total = _over_ranks(
            inputs, tf.stop_gradient(weights), self._reduction_axes, self._collectives
        )
        # Without any row there is nothing to learn.
        some = total > 0
        return tf.where(some, mean, self.moving_mean), tf.where(some, variance, self.moving_variance)


def _over_ranks(
    inputs: tf.Tensor, weights: tf.Tensor, axes: Sequence[int], name: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mean and variance a channel, of rows with weight 1 of all ranks, and how many there are."""

    @tf.custom_gradient
    def moments(x: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., tf.Tensor]]:
        # Masked rows may hold what is not finite.
        rows = tf.where(weights > 0, x, tf.zeros_like(x))
        count = tf.reduce_sum(weights, axes, keepdims=True)
        own = tf.reduce_sum(rows, axes, keepdims=True) / tf.maximum(count, 1.0)
        spread = tf.reduce_sum(weights * tf.square(rows - own), axes)
        # A float64 counts rows exactly.
        parts = [tf.cast(tf.reshape(each, [1, -1]), tf.float64) for each in (count, own, spread)]
        every = hvd.allgather(tf.concat(parts, 1), name=f"{name}.forward", ignore_name_scope=True)
        counts, means, spreads = tf.split(tf.ensure_shape(every, [None, 3 * spread.shape[0]]), 3, axis=1)
        total = tf.reduce_sum(counts, 0)
        some = tf.maximum(total, 1.0)
        # Of deviations from the mean, not of squares: those would cancel.
        mean = tf.reduce_sum(counts * means, 0) / some
        variance = tf.reduce_sum(spreads + counts * tf.square(means - mean), 0) / some

        def gradient(for_mean: tf.Tensor, for_variance: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            mine = tf.stack([for_mean, for_variance])
            both = hvd.allreduce(mine, op=hvd.Sum, name=f"{name}.backward", ignore_name_scope=True)
            of_mean, of_variance, middle, n = (
                tf.reshape(tf.cast(each, x.dtype), tf.shape(own)) for each in (both[0], both[1], mean, some)
            )
            return weights * (of_mean + 2.0 * (rows - middle) * of_variance) / n

        return (tf.cast(mean, x.dtype), tf.cast(variance, x.dtype), total), gradient

    return moments(inputs)
