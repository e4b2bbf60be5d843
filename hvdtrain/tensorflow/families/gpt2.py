"""GPT-2 of Keras' and KerasHub's layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import keras_hub
import tensorflow as tf

from hvdtrain.core.families import gpt2
from hvdtrain.core.families.gpt2 import ModelSpec
from hvdtrain.tensorflow.families._keras import ACTIVATIONS, Whole, round_products, set_attention_scale
from hvdtrain.tensorflow.families._recompute import recompute_layer
from hvdtrain.tensorflow.weights import Parameters


class Network:
    """Decoder layers behind embeddings of tokens and positions; its head predicts the next token."""

    # Layers are called through it, in the order of the forward pass.
    gathered: Any = Whole()

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        self._model, self._compute_dtype = model, compute_dtype
        # KerasHub's backbone fixes epsilon and activation, and numbers positions of whole rows alone.
        self._tokens = _embedding(model.vocab_size, model, "token_embedding")
        self._positions = _embedding(model.n_positions, model, "position_embedding")
        self._dropout = keras.layers.Dropout(model.embd_pdrop, dtype=model.dtype)
        self._layers = [self._layer(f"transformer_layer_{i}") for i in range(model.n_layer)]
        self._norm = keras.layers.LayerNormalization(
            epsilon=model.layer_norm_epsilon, dtype=model.dtype, name="layer_norm"
        )
        self._norm.build((None, None, model.n_embd))
        layers = [self._tokens, self._positions, *self._layers, self._norm]
        if not model.tie_word_embeddings:
            self._head = keras.layers.Dense(
                model.vocab_size, use_bias=False, dtype=model.dtype, name="lm_head"
            )
            self._head.build((None, None, model.n_embd))
            layers.append(self._head)
        self.variables = [v for layer in (*layers, self._dropout) for v in layer.variables]
        found = {v.path: v.value for v in self.variables}
        self.classes = model.vocab_size
        self.parameters: Parameters = {
            name: tuple(found[path] for path in paths) for name, paths in gpt2.keras_paths(model).items()
        }

    def gradient_checkpointing_enable(self) -> None:
        """Compute layers again in the backward pass, and keep nothing but their inputs."""
        for layer in self._layers:
            recompute_layer(layer)

    def features(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The last hidden state at every position but the last, (rows, length - 1, n_embd)."""
        ids = inputs["input_ids"]
        positions = inputs.get("position_ids", tf.range(ids.shape[1])[None])
        embedded = self.gathered(self._tokens, ids) + self.gathered(self._positions, positions)
        hidden = self._dropout(embedded, training=training)
        mask = _attention_mask(inputs.get("document_ids"))
        for layer in self._layers:
            hidden = self.gathered(layer, hidden, decoder_attention_mask=mask, training=training)
        return self.gathered(self._norm, hidden)[:, :-1]

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """The language-model head, (rows · (length - 1), vocab_size)."""
        return self.gathered.head(self._logits, features)

    def _logits(self, features: tf.Tensor) -> tf.Tensor:
        tied = self._model.tie_word_embeddings
        matrix = tf.convert_to_tensor(self._tokens.embeddings if tied else self._head.kernel)
        rows = tf.reshape(features, [-1, features.shape[-1]])
        rows, matrix = (tf.cast(x, self._compute_dtype) for x in (rows, matrix))
        return tf.matmul(rows, matrix, transpose_b=tied)

    def _layer(self, name: str) -> keras.layers.Layer:
        model = self._model
        layer = keras_hub.layers.TransformerDecoder(
            intermediate_dim=model.inner,
            num_heads=model.n_head,
            dropout=model.resid_pdrop,
            activation=ACTIVATIONS[model.activation_function],
            layer_norm_epsilon=model.layer_norm_epsilon,
            normalize_first=True,
            dtype=model.dtype,
            name=name,
        )
        layer.build((None, None, model.n_embd))
        attention = layer._self_attention_layer
        set_attention_scale(attention, model.n_embd // model.n_head, model.dtype)
        if self._compute_dtype != model.dtype:
            inner, outer = layer._feedforward_intermediate_dense, layer._feedforward_output_dense
            round_products(self._compute_dtype, attention, inner, outer)
        return layer


def _embedding(count: int, model: ModelSpec, name: str) -> keras.layers.Embedding:
    layer = keras.layers.Embedding(count, model.n_embd, dtype=model.dtype, name=name)
    layer.build()
    return layer


def _attention_mask(documents: tf.Tensor | None) -> tf.Tensor | None:
    """Whether each token may look at each other one, (rows, length, length); layers add the causal mask."""
    return None if documents is None else documents[:, :, None] == documents[:, None, :]
