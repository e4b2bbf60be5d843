"""What networks on images have in common: pixels in, and features for each column of targets out."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


def pixels_of(inputs: Mapping[str, tf.Tensor], dtype: str) -> tf.Tensor:
    """The normalised pixels, (rows, height, width, channels), as convolutions of TensorFlow take them.

    Args:
        inputs: a batch of `image_classification`.
        dtype: the weights'.
    """
    scale, offset = (tf.cast(inputs[name], dtype) for name in ("pixel_scale", "pixel_offset"))
    return tf.cast(inputs["pixel_values"], dtype) * scale + offset


def for_each_target(pooled: tf.Tensor, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The features of an image once for each of its targets, (rows, targets, features).

    Args:
        pooled: (rows, features).
        inputs: the batch.
    """
    return tf.repeat(pooled[:, None], inputs["targets"].shape[1], axis=1)
