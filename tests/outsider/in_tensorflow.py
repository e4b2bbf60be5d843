"""The linear map in TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


class Network:
    classes = 2

    def __init__(self, model: Any, compute_dtype: str) -> None:
        self._kernel = tf.Variable(tf.zeros((model.width, 2), model.dtype))
        self._bias = tf.Variable(tf.zeros(2, model.dtype))
        self.parameters = {"linear.weight": (self._kernel,), "linear.bias": (self._bias,)}

    def features(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        return tf.cast(inputs["x"], self._kernel.dtype)[:, None]

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        return features @ self._kernel + self._bias
