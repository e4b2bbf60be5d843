"""ResNet of TensorFlow's convolutions, with batch norm over real rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import keras
import tensorflow as tf

from hvdtrain.core.families import resnet
from hvdtrain.core.families.batch_norm import EPSILON
from hvdtrain.core.families.convolutions import Block, Convolution
from hvdtrain.core.families.resnet import ModelSpec
from hvdtrain.core.families.weights import Weight
from hvdtrain.tensorflow.batch_norm import batch_norm, keep
from hvdtrain.tensorflow.families._images import for_each_target, pixels_of
from hvdtrain.tensorflow.families._keras import Whole
from hvdtrain.tensorflow.families._recompute import recomputed
from hvdtrain.tensorflow.weights import Parameters


class Network:
    """Residual layers behind a convolution and a max-pool; its head says the class."""

    # Layers are called through it, in the order of the forward pass.
    gathered: Any = Whole()

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        self._model, self._compute_dtype = model, compute_dtype
        self._recomputes = False
        self.classes = model.num_labels
        self._variables = {weight.name: _variable(weight, model.dtype) for weight in resnet.weights(model)}
        self.variables = [*self._variables.values()]
        self.parameters: Parameters = {name: (each.value,) for name, each in self._variables.items()}

    def gradient_checkpointing_enable(self) -> None:
        """Compute blocks again in the backward pass, and keep nothing but their inputs."""
        self._recomputes = True

    def features(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The mean of the last maps, (rows, targets, hidden_sizes[-1])."""
        # None in evaluation, which normalises by the running statistics.
        rows = tf.reduce_sum(inputs["loss_weights"], 1) > 0.0 if training else None
        pixels = tf.cast(pixels_of(inputs, self._model.dtype), self._compute_dtype)
        maps = self.gathered(partial(self._convolved, resnet.stem(self._model), rows), pixels)
        # Zeros, behind ReLU, are as good as nothing.
        maps = tf.nn.max_pool2d(_padded(tf.nn.relu(maps), 3), 3, 2, "VALID")
        for _, blocks in groupby(resnet.blocks(self._model), lambda block: block.path[0].weights[0].layer):
            maps = self.gathered(partial(self._stage, [*blocks], rows), maps, training)
        return for_each_target(_mean(maps, self._model.dtype), inputs)

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """The classification head, (rows · targets, num_labels)."""
        return self.gathered.head(self._logits, tf.reshape(features, [-1, features.shape[-1]]))

    def _logits(self, flat: tf.Tensor) -> tf.Tensor:
        kernel, bias = (self._weight(f"{resnet.HEAD}1.{leaf}") for leaf in ("weight", "bias"))
        return tf.matmul(tf.cast(flat, self._compute_dtype), kernel) + bias

    def _stage(
        self, blocks: Sequence[Block], rows: tf.Tensor | None, maps: tf.Tensor, training: bool
    ) -> tf.Tensor:
        for block in blocks:
            call = partial(self._block, block, rows)
            maps = recomputed(call)(maps, training=training) if self._recomputes else call(maps, training)
        return maps

    def _block(self, block: Block, rows: tf.Tensor | None, maps: tf.Tensor, training: bool) -> tf.Tensor:
        del training  # then there are no rows
        *early, last = block.path
        found = maps
        for convolution in early:
            found = tf.nn.relu(self._convolved(convolution, rows, found))
        found = self._convolved(last, rows, found)
        return tf.nn.relu(found + (self._convolved(block.shortcut, rows, maps) if block.shortcut else maps))

    def _convolved(self, convolution: Convolution, rows: tf.Tensor | None, maps: tf.Tensor) -> tf.Tensor:
        kernel = self._weight(f"{convolution.name}.convolution.weight")
        found = tf.nn.conv2d(_padded(maps, convolution.kernel), kernel, convolution.stride, "VALID")
        return self._normed(f"{convolution.name}.normalization", found, rows)

    def _normed(self, name: str, maps: tf.Tensor, rows: tf.Tensor | None) -> tf.Tensor:
        leaves = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (self._variables[f"{name}.{leaf}"].value for leaf in leaves)
        if rows is None:
            scale = weight * (variance + EPSILON) ** -0.5
            return tf.cast((tf.cast(maps, weight.dtype) - mean) * scale + bias, maps.dtype)
        output, moments = batch_norm(maps, weight, bias, rows, name if self._model.sync_batch_norm else None)
        keep(mean, variance, moments)
        return output

    def _weight(self, name: str) -> tf.Tensor:
        return tf.cast(self._variables[name].value, self._compute_dtype)


def _variable(weight: Weight, dtype: str) -> keras.Variable:
    zeros = tf.zeros(weight.layout.shape(weight.shape), dtype)
    return keras.Variable(zeros, dtype=dtype, trainable=not weight.buffer, name=weight.name)


def _padded(maps: tf.Tensor, kernel: int) -> tf.Tensor:
    """With half a kernel of zeros on each side, as in PyTorch; TensorFlow's `SAME` pads the ends more."""
    if (width := kernel // 2) == 0:
        return maps
    return tf.pad(maps, [[0, 0], [width, width], [width, width], [0, 0]])


def _mean(maps: tf.Tensor, dtype: str) -> tf.Tensor:
    """Of each channel, (rows, channels); sums of 16 bits are taken in the weights' dtype."""
    return tf.cast(tf.reduce_mean(tf.cast(maps, dtype), [1, 2]), maps.dtype)
