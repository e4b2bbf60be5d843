"""Models built from a spec with KerasHub."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from hvdtrain.core.data import MicroBatch
from hvdtrain.core.sections import ModelSpec
from hvdtrain.core.weights import Weight
from hvdtrain.models import bert
from hvdtrain.tensorflow.weights import read, write


def _in_float32(activation: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Every step of a formula rounds to its dtype; PyTorch rounds to 16 bits once, at the end."""
    return lambda x: (
        tf.cast(activation(tf.cast(x, "float32")), x.dtype) if x.dtype.size == 2 else activation(x)
    )


@_in_float32
def _gelu(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * x * (1.0 + tf.math.erf(x * tf.constant(math.sqrt(0.5), x.dtype)))


@_in_float32
def _gelu_new(x: tf.Tensor) -> tf.Tensor:
    return (
        0.5
        * x
        * (1.0 + tf.tanh(tf.constant(math.sqrt(2 / math.pi), x.dtype) * (x + 0.044715 * tf.pow(x, 3.0))))
    )


# TensorFlow 2.21's tf.nn.gelu rounds its constants to float32 even for float64 input: wrong by 5e-9.
_ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {"gelu": _gelu, "gelu_new": _gelu_new}


class MaskedLM:
    """`BertBackbone` with a `MaskedLMHead` at the masked positions."""

    def __init__(
        self, model: ModelSpec, weights: tuple[Weight, ...], compute_dtype: str | None = None
    ) -> None:
        """Build the model; its weights are arbitrary until `write`.

        Args:
            model: the hyper-parameters.
            weights: the model's weights.
            compute_dtype: of matrix products; None: that of the weights.
        """
        self._dtype, self._compute_dtype = model.dtype, compute_dtype or model.dtype
        self._backbone = keras_hub.models.BertBackbone(
            vocabulary_size=model.vocab_size,
            num_layers=model.num_hidden_layers,
            num_heads=model.num_attention_heads,
            hidden_dim=model.hidden_size,
            intermediate_dim=model.intermediate_size,
            dropout=model.hidden_dropout_prob,
            max_sequence_length=model.max_position_embeddings,
            num_segments=model.type_vocab_size,
            dtype=model.dtype,
        )
        self._head = keras_hub.layers.MaskedLMHead(
            vocabulary_size=model.vocab_size,
            token_embedding=self._backbone.token_embedding if model.tie_word_embeddings else None,
            intermediate_activation=_ACTIVATIONS[model.hidden_act],
            layer_norm_epsilon=model.layer_norm_eps,
            dtype=model.dtype,
            name="mlm_head",
        )
        self._head.build((None, None, model.hidden_size))
        _obey(model, self._backbone)
        if self._compute_dtype != self._dtype:
            _mix(self._compute_dtype, self._backbone, self._head)
        found = {v.path: v.value for v in [*self._backbone.variables, *self._head.variables]}
        self.weights = weights
        self.parameters = {
            name: tuple(found[path] for path in paths) for name, paths in bert.keras_paths(model).items()
        }

    def loss_sum(self, batch: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The weighted sum of cross-entropies in nats over a batch's masked positions.

        Args:
            batch: what `tensors` made of a micro-batch.
            training: whether dropout is on.

        Returns:
            A scalar.
        """
        hidden = self._backbone(
            {
                "token_ids": batch["input_ids"],
                "segment_ids": batch["token_type_ids"],
                "padding_mask": batch["attention_mask"],
            },
            training=training,
        )["sequence_output"]
        logits = self._logits(tf.gather(hidden, batch["masked_positions"], batch_dims=1))
        labels, weights = (tf.reshape(batch[name], [-1]) for name in ("masked_labels", "masked_weights"))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return tf.reduce_sum(losses * tf.cast(weights, losses.dtype))

    def _logits(self, hidden: tf.Tensor) -> tf.Tensor:
        # The head's own call, but for the dtype of its largest product, and that one of two matrices.
        head = self._head
        hidden = head._intermediate_layer_norm(head._intermediate_dense(hidden))
        tied = head.token_embedding
        matrix = tf.convert_to_tensor(tied.embeddings if tied else head._kernel)
        rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
        rows, matrix = (tf.cast(x, self._compute_dtype) for x in (rows, matrix))
        logits = tf.matmul(rows, matrix, transpose_b=bool(tied))
        return tf.cast(logits, self._dtype) + head._bias

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the weights by name."""
        return {w.name: read(w, self.parameters[w.name]) for w in self.weights}

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Set every weight.

        Args:
            arrays: by weight name, in the Hugging Face layout.
        """
        for weight in self.weights:
            write(weight, self.parameters[weight.name], arrays[weight.name])


def tensors(batch: MicroBatch) -> dict[str, tf.Tensor]:
    """A micro-batch's arrays as tensors by field name, on this rank's device."""
    return {name: tf.convert_to_tensor(array) for name, array in batch.arrays().items()}


def _obey(model: ModelSpec, backbone: keras.Model) -> None:
    # KerasHub 0.32 fixes the tanh GELU and an epsilon of 1e-12; the spec decides here.
    backbone.embeddings_layer_norm.epsilon = model.layer_norm_eps
    # Keras 3.15 rounds the attention's scale to float32 even for float64 queries: wrong by 1e-8.
    scale = np.dtype(model.dtype).type(math.sqrt(model.num_attention_heads / model.hidden_size))
    for layer in backbone.transformer_layers:
        layer._self_attention_layer._inverse_sqrt_key_dim = scale
        layer._feedforward_intermediate_dense.activation = _ACTIVATIONS[model.hidden_act]
        layer._self_attention_layer_norm.epsilon = model.layer_norm_eps
        layer._feedforward_layer_norm.epsilon = model.layer_norm_eps


def _mix(compute_dtype: str, backbone: keras.Model, head: keras.layers.Layer) -> None:
    """Have matrix products alone, and the activation behind one, computed in 16 bits, as autocast does.

    A policy for whole layers would also round embeddings and the sums of residuals, and Keras would sum the
    embeddings' gradients in 16 bits.
    """
    policy = keras.DTypePolicy({"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}[compute_dtype])
    for layer in backbone.transformer_layers:
        attention = layer._self_attention_layer
        products = (
            attention,
            attention._query_dense,
            attention._key_dense,
            attention._value_dense,
            attention._output_dense,
            attention._dropout_layer,
            layer._feedforward_intermediate_dense,
            layer._feedforward_output_dense,
        )
        # The softmax keeps the float32 of the other layers; its dropout rounds for the product behind it.
        for product in products:
            product.dtype_policy = policy
    head._intermediate_dense.dtype_policy = policy
