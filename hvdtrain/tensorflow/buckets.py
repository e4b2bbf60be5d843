"""Gradients in flat buckets, and the layouts that weights have in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from hvdtrain.core.families.weights import SAME, Weight
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.tensorflow.weights import Parameters


class GradBucket:
    """The gradients of one bucket in one flat tensor, and the sum of a window's micro-batches.

    Attributes:
        layout: which weights lie in the bucket, and in which order.
        dtype: in which gradients add up, by its name.
        total: the sum of the micro-batches so far, shape (layout.size,); None before `accumulate`.
    """

    def __init__(self, layout: Bucket, dtype: str) -> None:
        """Hold nothing: without accumulation there is no total.

        Args:
            layout: of the bucket.
            dtype: in which gradients add up, by its name.
        """
        self.layout, self.dtype = layout, dtype
        self.total: tf.Variable | None = None

    def start_window(self) -> None:
        """Forget the last window's gradients."""
        if self.total is not None:
            self.total.assign(tf.zeros_like(self.total))

    def pack(self, gradients: Mapping[str, Sequence[tf.Tensor]]) -> tf.Tensor:
        """One micro-batch's gradients, flat, in the bucket's dtype; see `pack`."""
        return tf.cast(pack(self.layout, gradients), self.dtype)

    def accumulate(self) -> tf.Variable:
        """The total, which is made where there is none; what is traced before does not add it."""
        if self.total is None:
            with tf.init_scope():
                self.total = tf.Variable(tf.zeros((self.layout.size,), self.dtype), trainable=False)
        return self.total

    def add(self, flat: tf.Tensor) -> None:
        """Add a micro-batch, flat, to the total."""
        self.accumulate().assign_add(flat)

    def whole(self, flat: tf.Tensor) -> tf.Tensor:
        """The total and the window's last micro-batch, flat."""
        return flat if self.total is None else self.total + flat


def pack(bucket: Bucket, gradients: Mapping[str, Sequence[tf.Tensor]]) -> tf.Tensor:
    """A bucket's gradients behind each other, sparse ones made dense.

    Args:
        bucket: its layout.
        gradients: those of the variables that hold a weight, by its name.
    """
    found = [gradient for weight in bucket.weights for gradient in gradients[weight.name]]
    return tf.concat([tf.reshape(tf.convert_to_tensor(gradient), [-1]) for gradient in found], 0)


def unpack(bucket: Bucket, flat: tf.Tensor, parameters: Parameters) -> dict[str, list[tf.Tensor]]:
    """The inverse of `pack`: tensors of the variables' shapes."""
    held = [variable for weight in bucket.weights for variable in parameters[weight.name]]
    parts = iter(tf.split(flat, [variable.shape.num_elements() for variable in held]))
    return {
        weight.name: [tf.reshape(next(parts), variable.shape) for variable in parameters[weight.name]]
        for weight in bucket.weights
    }


def swap_layout(bucket: Bucket, flat: tf.Tensor, to_keras: bool) -> tf.Tensor:
    """A flat bucket with its weights in Keras' layout, or in Hugging Face's."""
    parts = tf.split(flat, bucket.sizes)
    for i, weight in enumerate(bucket.weights):
        if weight.layout != SAME:
            swap = _split if to_keras else _join
            parts[i] = swap(weight, parts[i])
    return tf.concat(parts, 0)


def lay_out(bucket: Bucket, flat: tf.Tensor, parameters: Parameters) -> dict[str, list[tf.Tensor]]:
    """A flat bucket in Hugging Face's layout as tensors of the variables' shapes."""
    found = {}
    for weight, part in zip(bucket.weights, tf.split(flat, bucket.sizes), strict=True):
        held = parameters[weight.name]
        whole = part if weight.layout == SAME else _split(weight, part)
        parts = tf.split(whole, [variable.shape.num_elements() for variable in held])
        found[weight.name] = [tf.reshape(p, v.shape) for p, v in zip(parts, held, strict=True)]
    return found


def _split(weight: Weight, flat: tf.Tensor) -> tf.Tensor:
    """`Layout.split`, of flat arrays: the variables lie behind each other."""
    found, layout = tf.reshape(flat, weight.shape), weight.layout
    if layout.axes is not None:
        found = tf.transpose(found, layout.axes)
    parts = tf.split(found, layout.parts, axis=-1) if layout.parts > 1 else [found]
    return tf.concat([tf.reshape(part, [-1]) for part in parts], 0)


def _join(weight: Weight, flat: tf.Tensor) -> tf.Tensor:
    """`Layout.join`, of flat arrays."""
    layout = weight.layout
    *outer, last = layout.shape(weight.shape)
    parts = [tf.reshape(part, [*outer, last // layout.parts]) for part in tf.split(flat, layout.parts)]
    found = tf.concat(parts, -1)
    return tf.reshape(found if layout.axes is None else tf.transpose(found, layout.inverse), [-1])
