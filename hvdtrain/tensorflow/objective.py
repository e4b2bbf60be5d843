"""The named losses and metrics of a user's model in TensorFlow, and their sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from hvdtrain.core.tasks.custom import TaskSpec
from hvdtrain.core.tasks.objective import Function, Objective
from hvdtrain.tensorflow.losses import each_cross_entropy


def build_objective(task: TaskSpec, dtype: tf.DType) -> Objective:
    """The loss and the metrics of a task.

    Args:
        task: the section of the spec.
        dtype: in which losses are computed and summed.

    Raises:
        SpecError: a path cannot be imported.
    """
    return Objective(task, _Kernels(dtype))


class _Kernels:
    """See `Kernels` of `hvdtrain.core.tasks.objective`."""

    def __init__(self, dtype: tf.DType) -> None:
        self._dtype = dtype
        self.losses: Mapping[str, Function] = {
            "cross_entropy": _cross_entropy,
            "mse": _mse,
            "bce_with_logits": _bce_with_logits,
        }
        self.metrics: Mapping[str, Function] = {"accuracy": _accuracy}

    def read(self, tensor: tf.Tensor) -> np.ndarray:
        return tensor.numpy()

    def unlike(self, targets: tf.Tensor, value: int) -> tf.Tensor:
        return tf.cast(tf.cast(targets, tf.float64) != value, self._dtype)

    def classes(self, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        # TensorFlow's cross-entropy takes two types of integers alone.
        targets = tf.cast(targets, tf.int64)
        return tf.where(weights > 0, targets, tf.zeros_like(targets))

    def sum_predictions(
        self, function: Function, logits: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        weights = tf.cast(weights, self._dtype)
        found = tf.reshape(function(tf.cast(logits, self._dtype), targets), [-1])
        return tf.reduce_sum(found * tf.reshape(weights, [-1])), tf.reduce_sum(weights)

    def sum_examples(self, values: tf.Tensor, rows: int) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.reduce_sum(tf.cast(values, self._dtype)), tf.constant(rows, self._dtype)

    def take_pair(self, total: Any, weight: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(total, self._dtype), tf.stop_gradient(tf.cast(weight, self._dtype))


def _cross_entropy(logits: tf.Tensor, targets: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    rows = tf.reshape(logits, [-1, logits.shape[-1]])
    return each_cross_entropy(rows, tf.reshape(targets, [-1]), label_smoothing)


def _mse(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    return tf.square(outputs - tf.cast(targets, outputs.dtype))


def _bce_with_logits(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    return tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(targets, logits.dtype), logits)


def _accuracy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    # Of the classes, the likeliest; of a single logit, whether it is above 0.
    one = logits.shape == targets.shape
    found = logits > 0 if one else tf.argmax(logits, -1)
    return tf.cast(found == tf.cast(targets, found.dtype), logits.dtype)
