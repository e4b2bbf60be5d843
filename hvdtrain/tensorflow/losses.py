"""Losses as weighted sums over predictions; the divisor is the loop's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hvdtrain.core.update.losses import chunks


def cross_entropy(
    logits: Callable[[tf.Tensor], tf.Tensor],
    classes: int,
    features: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    dtype: tf.DType,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """The weighted sum of cross-entropies, in nats.

    Where the logits of all predictions would be many, they are computed chunk by chunk, and again for the
    backward pass.

    Args:
        logits: the head, (..., features) -> (..., classes).
        classes: how many.
        features: what the head takes, (rows, predictions, features).
        targets: the right classes, (rows, predictions).
        weights: factor of each prediction's loss, (rows, predictions).
        dtype: in which softmax and sum are taken.
        label_smoothing: see `hvdtrain.core.update.losses.cross_entropy`.

    Returns:
        A scalar of that dtype.
    """

    def loss_sum(part: tf.Tensor, right: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
        found = tf.cast(logits(part), dtype)
        rows = tf.reshape(found, [-1, found.shape[-1]])
        losses = each_cross_entropy(rows, tf.reshape(right, [-1]), label_smoothing)
        return tf.reduce_sum(losses * tf.cast(tf.reshape(factors, [-1]), dtype))

    sizes = chunks(targets.shape.num_elements(), classes)
    if len(sizes) == 1:
        return loss_sum(features, targets, weights)
    flat = tf.reshape(features, [-1, features.shape[-1]])
    others = [tf.split(tf.reshape(x, [-1]), sizes) for x in (targets, weights)]

    @tf.custom_gradient
    def total(flat: tf.Tensor) -> tuple[tf.Tensor, Any]:
        losses: list[tf.Tensor] = []
        for part, *other in zip(tf.split(flat, sizes), *others, strict=True):
            # One after the other: TensorFlow would hold the logits of all.
            with tf.control_dependencies(losses[-1:]):
                losses.append(loss_sum(tf.identity(part), *other))

        def backward(
            upstream: tf.Tensor, variables: Sequence[tf.Variable]
        ) -> tuple[tf.Tensor, list[tf.Tensor]]:
            found: list[tf.Tensor] = []
            sums = [tf.zeros(variable.shape, variable.dtype) for variable in variables]
            for part, *other in zip(tf.split(flat, sizes), *others, strict=True):
                with tf.control_dependencies([upstream, *sums, *found[-1:]]), tf.GradientTape() as tape:
                    mine = tf.identity(part)
                    tape.watch(mine)
                    loss = upstream * loss_sum(mine, *other)
                gradient, *own = tape.gradient(loss, [mine, *variables])
                found.append(gradient)
                sums = [total + tf.convert_to_tensor(g) for total, g in zip(sums, own, strict=True)]
            return tf.concat(found, 0), sums

        return tf.add_n(losses), backward

    return total(flat)


def each_cross_entropy(logits: tf.Tensor, targets: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """The core's `cross_entropy`, of tensors.

    Args:
        logits: (predictions, classes).
        targets: the right classes, (predictions,).
        label_smoothing: at least 0 and below 1.

    Returns:
        (predictions,).
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    if not label_smoothing:
        return losses
    # Of classes that are all as likely.
    uniform = tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1)
    return (1.0 - label_smoothing) * losses + label_smoothing * uniform
