"""ResNet of TensorFlow's convolutions, with batch norm over real rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import tensorflow as tf

from hvdtrain.core.families import resnet
from hvdtrain.core.families.batch_norm import EPSILON
from hvdtrain.core.families.convolutions import Block, Convolution
from hvdtrain.core.families.resnet import ModelSpec
from hvdtrain.tensorflow.batch_norm import batch_norm, keep
from hvdtrain.tensorflow.families._images import for_each_target, pixels_of
from hvdtrain.tensorflow.families._recompute import recomputed
from hvdtrain.tensorflow.weights import Parameters


class Network:
    """Residual layers behind a convolution and a max-pool; its head says the class."""

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        self._model, self._compute_dtype = model, compute_dtype
        self._recomputes = False
        self.classes = model.num_labels
        self.parameters: Parameters = {
            weight.name: (
                tf.Variable(tf.zeros(weight.layout.shape(weight.shape), model.dtype), not weight.buffer),
            )
            for weight in resnet.weights(model)
        }

    def gradient_checkpointing_enable(self) -> None:
        """Compute blocks again in the backward pass, and keep nothing but their inputs."""
        self._recomputes = True

    def features(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The mean of the last maps, (rows, targets, hidden_sizes[-1])."""
        # None in evaluation, which normalises by the running statistics.
        rows = tf.reduce_sum(inputs["loss_weights"], 1) > 0.0 if training else None
        pixels = tf.cast(pixels_of(inputs, self._model.dtype), self._compute_dtype)
        maps = tf.nn.relu(self._convolved(resnet.stem(self._model), pixels, rows))
        # Zeros, behind ReLU, are as good as nothing.
        maps = tf.nn.max_pool2d(_padded(maps, 3), 3, 2, "VALID")
        for block in resnet.blocks(self._model):
            call = partial(self._block, block, rows)
            maps = recomputed(call)(maps, training=training) if self._recomputes else call(maps, training)
        return for_each_target(_mean(maps, self._model.dtype), inputs)

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """The classification head, (rows · targets, num_labels)."""
        flat = tf.reshape(features, [-1, features.shape[-1]])
        kernel, bias = (self._weight(f"{resnet.HEAD}1.{leaf}") for leaf in ("weight", "bias"))
        return tf.matmul(tf.cast(flat, self._compute_dtype), kernel) + bias

    def _block(self, block: Block, rows: tf.Tensor | None, maps: tf.Tensor, training: bool) -> tf.Tensor:
        del training  # then there are no rows
        *early, last = block.path
        found = maps
        for convolution in early:
            found = tf.nn.relu(self._convolved(convolution, found, rows))
        found = self._convolved(last, found, rows)
        return tf.nn.relu(found + (self._convolved(block.shortcut, maps, rows) if block.shortcut else maps))

    def _convolved(self, convolution: Convolution, maps: tf.Tensor, rows: tf.Tensor | None) -> tf.Tensor:
        kernel = self._weight(f"{convolution.name}.convolution.weight")
        found = tf.nn.conv2d(_padded(maps, convolution.kernel), kernel, convolution.stride, "VALID")
        return self._normed(f"{convolution.name}.normalization", found, rows)

    def _normed(self, name: str, maps: tf.Tensor, rows: tf.Tensor | None) -> tf.Tensor:
        leaves = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (self.parameters[f"{name}.{leaf}"][0] for leaf in leaves)
        if rows is None:
            scale = weight * (variance + EPSILON) ** -0.5
            return tf.cast((tf.cast(maps, weight.dtype) - mean) * scale + bias, maps.dtype)
        output, moments = batch_norm(maps, weight, bias, rows, name if self._model.sync_batch_norm else None)
        keep(mean, variance, moments)
        return output

    def _weight(self, name: str) -> tf.Tensor:
        (variable,) = self.parameters[name]
        return tf.cast(variable, self._compute_dtype)


def _padded(maps: tf.Tensor, kernel: int) -> tf.Tensor:
    """With half a kernel of zeros on each side, as in PyTorch; TensorFlow's `SAME` pads the ends more."""
    if (width := kernel // 2) == 0:
        return maps
    return tf.pad(maps, [[0, 0], [width, width], [width, width], [0, 0]])


def _mean(maps: tf.Tensor, dtype: str) -> tf.Tensor:
    """Of each channel, (rows, channels); sums of 16 bits are taken in the weights' dtype."""
    return tf.cast(tf.reduce_mean(tf.cast(maps, dtype), [1, 2]), maps.dtype)
