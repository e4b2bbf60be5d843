"""A spec's model and its loss, with weights that are read and set as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from hvdtrain.core.data import Batch
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.sections import ModelSection
from hvdtrain.core.tasks.causal_lm import next_token_batch
from hvdtrain.tensorflow.families import network_of
from hvdtrain.tensorflow.losses import cross_entropy
from hvdtrain.tensorflow.weights import Parameters, read, write


class Model:
    """A family's network and the loss of a batch."""

    def __init__(
        self, model: ModelSection, weights: Sequence[Weight], compute_dtype: str | None = None
    ) -> None:
        """Build the network; its weights are arbitrary until `write`.

        Args:
            model: the hyper-parameters.
            weights: the model's weights.
            compute_dtype: of matrix products; None: that of the weights.
        """
        self._dtype = tf.as_dtype(model.dtype)
        self.network = network_of(model)(model, compute_dtype or model.dtype)
        self.weights = tuple(weights)
        self.parameters: Parameters = {w.name: self.network.parameters[w.name] for w in weights}

    def loss_sum(self, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The weighted sum of cross-entropies in nats over a batch's predictions.

        Args:
            batch: what `tensors` made of a micro-batch.
            training: whether dropout is on.

        Returns:
            A scalar.
        """
        network, features = self.network, self.network.features(batch, training)
        targets, weights = batch["targets"], batch["loss_weights"]
        return cross_entropy(network.logits, network.classes, features, targets, weights, self._dtype)

    def next_logits(self, ids: np.ndarray) -> np.ndarray:
        """What a causal language model predicts behind each row of tokens.

        Args:
            ids: int32 (rows, length).

        Returns:
            Logits in the weights' dtype, (rows, vocab_size).
        """
        features = self.network.features(tensors(next_token_batch(ids)), training=False)
        found = tf.cast(self.network.logits(features[:, -1:]), self._dtype)
        return tf.reshape(found, [-1, found.shape[-1]]).numpy()

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the weights by name, in the Hugging Face layout."""
        return {w.name: read(w, self.parameters[w.name]) for w in self.weights}

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Set every weight.

        Args:
            arrays: by weight name, in the Hugging Face layout.
        """
        for weight in self.weights:
            write(weight, self.parameters[weight.name], arrays[weight.name])


def tensors(batch: Batch) -> dict[str, tf.Tensor]:
    """A micro-batch's arrays as tensors by field name, on this rank's device."""
    return {name: tf.convert_to_tensor(array) for name, array in batch.arrays().items()}
