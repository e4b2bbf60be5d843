"""Losses and metrics of a user's in TensorFlow; `torch_losses.py` has their twins."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Batch = dict[str, tf.Tensor]


def each(outputs: tf.Tensor, batch: Batch) -> tf.Tensor:
    """A loss for each example."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], outputs)


def pair(outputs: tf.Tensor, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """A sum and what it weighs, which only the batch says; some examples weigh nothing."""
    weights = tf.cast(batch["count"], outputs.dtype)
    return tf.reduce_sum(each(outputs, batch) * weights), tf.reduce_sum(weights)


def near(outputs: tf.Tensor, batch: Batch) -> tf.Tensor:
    """A metric: whether the right class is among the best two."""
    found = tf.math.top_k(outputs, 2).indices == tf.cast(batch["labels"], tf.int32)[:, None]
    return tf.cast(tf.reduce_any(found, 1), outputs.dtype)


def weighed(outputs: Any, batch: Batch) -> Any:
    """A metric with a weight."""
    right = tf.cast(tf.argmax(outputs, 1) == batch["labels"], outputs.dtype)
    return tf.reduce_sum(right * tf.cast(batch["count"], outputs.dtype)), tf.reduce_sum(batch["count"])
