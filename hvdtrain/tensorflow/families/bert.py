"""BERT as KerasHub builds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import keras_hub
import tensorflow as tf

from hvdtrain.core.families.bert import ModelSpec, classifier_dropout
from hvdtrain.core.families.bert_in_keras import keras_paths
from hvdtrain.tensorflow.families._keras import ACTIVATIONS, Whole, round_products, set_attention_scale
from hvdtrain.tensorflow.families._recompute import recompute_layer
from hvdtrain.tensorflow.weights import Parameters


class Network:
    """`BertBackbone` with a `MaskedLMHead` at the masked positions, or with `BertTextClassifier`'s layers."""

    # Layers are called through it, in the order of the forward pass.
    gathered: Any = Whole()

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        self._model, self._compute_dtype = model, compute_dtype
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
        self._classifies = model.num_labels is not None
        self._head = self._classifier() if self._classifies else self._masked_lm_head()
        self._obey()
        layers = [self._backbone, self._head, *([self._dropout] if self._classifies else [])]
        self.variables = [v for layer in layers for v in layer.variables]
        found = {v.path: v.value for v in self.variables}
        self.classes = model.num_labels or model.vocab_size
        self.parameters: Parameters = {
            name: tuple(found[path] for path in paths) for name, paths in keras_paths(model).items()
        }

    def gradient_checkpointing_enable(self) -> None:
        """Compute layers again in the backward pass, and keep nothing but their inputs."""
        for layer in self._backbone.transformer_layers:
            recompute_layer(layer)

    def features(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The last hidden state at the masked positions, (rows, predictions, hidden_size).

        With a classifier, the pooler's output, (rows, 1, hidden_size).
        """
        backbone = self._backbone
        hidden = backbone.embeddings_dropout(self._embedded(inputs), training=training)
        for layer in backbone.transformer_layers:
            mask = inputs["attention_mask"]
            hidden = self.gathered(layer, hidden, padding_mask=mask, training=training)
        if self._classifies:
            pooled = self.gathered(backbone.pooled_dense, hidden[:, 0])
            return self._dropout(pooled, training=training)[:, None]
        found = tf.gather(hidden, inputs["masked_positions"], batch_dims=1)
        return self.gathered(self._transformed, found)

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """The masked-LM head, (rows · predictions, vocab_size), or the classifier, (rows, 1, num_labels)."""
        if self._classifies:
            return self.gathered.head(self._head, features)
        return self.gathered.head(self._decoded, features, self._head._bias)

    def _embedded(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        ids, segments, tokens = inputs["input_ids"], inputs["token_type_ids"], self._backbone.token_embedding
        if self._model.tie_word_embeddings and not self._classifies:
            # A layer of its own, which the head is as well.
            return self.gathered(self._summed, self.gathered(tokens, ids), segments)
        return self.gathered(lambda ids: self._summed(tokens(ids), segments), ids)

    def _summed(self, tokens: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
        backbone = self._backbone
        parts = tokens, backbone.position_embedding(tokens), backbone.segment_embedding(segments)
        return backbone.embeddings_layer_norm(backbone.embeddings_add(parts))

    # The head's own call in two, but for the dtype of its largest product, and that one of two matrices.

    def _transformed(self, hidden: tf.Tensor) -> tf.Tensor:
        return self._head._intermediate_layer_norm(self._head._intermediate_dense(hidden))

    def _decoded(self, hidden: tf.Tensor) -> tf.Tensor:
        head, tied = self._head, self._head.token_embedding
        matrix = tf.convert_to_tensor(tied.embeddings if tied else head._kernel)
        rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
        rows, matrix = (tf.cast(x, self._compute_dtype) for x in (rows, matrix))
        logits = tf.matmul(rows, matrix, transpose_b=bool(tied))
        return tf.cast(logits, self._model.dtype) + head._bias

    def _masked_lm_head(self) -> keras.layers.Layer:
        model = self._model
        head = keras_hub.layers.MaskedLMHead(
            vocabulary_size=model.vocab_size,
            token_embedding=self._backbone.token_embedding if model.tie_word_embeddings else None,
            intermediate_activation=ACTIVATIONS[model.hidden_act],
            layer_norm_epsilon=model.layer_norm_eps,
            dtype=model.dtype,
            name="mlm_head",
        )
        head.build((None, None, model.hidden_size))
        return head

    def _classifier(self) -> keras.layers.Layer:
        model = self._model
        self._dropout = keras.layers.Dropout(classifier_dropout(model), dtype=model.dtype)
        head = keras.layers.Dense(model.num_labels, dtype=model.dtype, name="logits")
        head.build((None, None, model.hidden_size))
        return head

    def _obey(self) -> None:
        # KerasHub 0.32 fixes the tanh GELU and an epsilon of 1e-12; the spec decides here.
        model, backbone = self._model, self._backbone
        backbone.embeddings_layer_norm.epsilon = model.layer_norm_eps
        backbone.pooled_dense.activation = ACTIVATIONS["tanh"]
        products = [backbone.pooled_dense]
        products.append(self._head if self._classifies else self._head._intermediate_dense)
        for layer in backbone.transformer_layers:
            attention, inner = layer._self_attention_layer, layer._feedforward_intermediate_dense
            set_attention_scale(attention, model.hidden_size // model.num_attention_heads, model.dtype)
            inner.activation = ACTIVATIONS[model.hidden_act]
            layer._self_attention_layer_norm.epsilon = model.layer_norm_eps
            layer._feedforward_layer_norm.epsilon = model.layer_norm_eps
            products += [attention, inner, layer._feedforward_output_dense]
        if self._compute_dtype != model.dtype:
            round_products(self._compute_dtype, *products)
