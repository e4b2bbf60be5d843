"""Losses as weighted sums over predictions; the divisor is the loop's."""

from __future__ import annotations

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """The weighted sum of cross-entropies, in nats.

    Args:
        logits: (..., classes).
        targets: the right classes, (...).
        weights: factor of each prediction's loss, (...).

    Returns:
        A scalar of the logits' dtype.
    """
    rows = tf.reshape(logits, [-1, logits.shape[-1]])
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(targets, [-1]), rows)
    return tf.reduce_sum(losses * tf.cast(tf.reshape(weights, [-1]), losses.dtype))
