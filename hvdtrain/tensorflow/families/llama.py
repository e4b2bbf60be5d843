"""Llama of Keras' layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from hvdtrain.core.families import llama
from hvdtrain.core.families.llama import ModelSpec
from hvdtrain.core.families.rope import rope_table
from hvdtrain.core.families.weights import Weight
from hvdtrain.tensorflow.families._keras import ACTIVATIONS, Whole, round_products
from hvdtrain.tensorflow.families._recompute import recomputed
from hvdtrain.tensorflow.weights import Parameters


class Network:
    """Decoder layers behind the embeddings of tokens; its head predicts the next token."""

    # Layers are called through it, in the order of the forward pass.
    gathered: Any = Whole()

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        self._model, self._compute_dtype = model, compute_dtype
        # KerasHub's decoder computes norms, angles, softmax and SiLU in float32 whatever the dtype.
        table = llama.weights(model)
        names = {weight.name for weight in table}
        self._layers: dict[str, keras.layers.Layer] = {}
        for weight in table:
            module, leaf = weight.name.rsplit(".", 1)
            if leaf == "weight":
                self._layers[module] = self._layer(weight, f"{module}.bias" in names)
        self._dropout = keras.layers.Dropout(model.attention_dropout, dtype=model.dtype)
        self.variables = [v for layer in (*self._layers.values(), self._dropout) for v in layer.variables]
        self.classes = model.vocab_size
        self.parameters: Parameters = {weight.name: (self._variable(weight.name),) for weight in table}

    def gradient_checkpointing_enable(self) -> None:
        """Compute layers again in the backward pass, and keep nothing but their inputs."""
        self._decoder = recomputed(self._decoder, self._dropout)  # type: ignore[method-assign]

    def features(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The last hidden state at every position but the last, (rows, length - 1, hidden_size)."""
        ids = inputs["input_ids"]
        rotation = self._rotation(ids.shape[1], inputs.get("position_ids"))
        mask = _attention_mask(ids.shape[1], inputs.get("document_ids"))
        hidden = self.gathered(self._layers["model.embed_tokens"], ids)
        for i in range(self._model.num_hidden_layers):
            where = f"model.layers.{i}"
            hidden = self.gathered(self._decoder, hidden, where, rotation, mask, training=training)
        return self.gathered(self._layers["model.norm"], hidden)[:, :-1]

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """The language-model head, (rows · (length - 1), vocab_size)."""
        return self.gathered.head(self._logits, features)

    def _logits(self, features: tf.Tensor) -> tf.Tensor:
        tied, layers = self._model.tie_word_embeddings, self._layers
        found = layers["model.embed_tokens"].embeddings if tied else layers["lm_head"].kernel
        rows, matrix = tf.reshape(features, [-1, features.shape[-1]]), tf.convert_to_tensor(found)
        rows, matrix = (tf.cast(x, self._compute_dtype) for x in (rows, matrix))
        return tf.matmul(rows, matrix, transpose_b=tied)

    def _decoder(
        self,
        hidden: tf.Tensor,
        name: str,
        rotation: tuple[tf.Tensor, tf.Tensor],
        mask: tf.Tensor,
        training: bool,
    ) -> tf.Tensor:
        normed = self._layers[f"{name}.input_layernorm"](hidden)
        hidden += self._attention(f"{name}.self_attn", normed, rotation, mask, training)
        return hidden + self._mlp(f"{name}.mlp", self._layers[f"{name}.post_attention_layernorm"](hidden))

    def _attention(
        self, name: str, x: tf.Tensor, rotation: tuple[tf.Tensor, tf.Tensor], mask: tf.Tensor, training: bool
    ) -> tf.Tensor:
        """Each head of keys and values serves a group of heads of queries: no copies of them are made."""
        model, rows, length = self._model, tf.shape(x)[0], x.shape[1]
        size, heads = model.head_size, model.key_value_heads
        group = model.num_attention_heads // heads

        def by_head(part: str) -> tf.Tensor:
            found = self._layers[f"{name}.{part}"](x)
            found = tf.reshape(found, [rows, length, found.shape[-1] // size, size])
            return tf.transpose(found, [0, 2, 1, 3])

        query, key = (_turned(tf.cast(by_head(p), model.dtype), rotation) for p in ("q_proj", "k_proj"))
        # Before the product, which could overflow in float16.
        query = tf.reshape(query * size**-0.5, [rows, heads, group * length, size])
        query, key, value = (tf.cast(t, self._compute_dtype) for t in (query, key, by_head("v_proj")))
        scores = tf.cast(tf.matmul(query, key, transpose_b=True), model.dtype)
        scores = tf.reshape(scores, [rows, heads, group, length, length])
        shares = tf.nn.softmax(tf.where(mask, scores, scores.dtype.min))
        shares = tf.cast(self._dropout(shares, training=training), self._compute_dtype)
        found = tf.matmul(tf.reshape(shares, [rows, heads, group * length, length]), value)
        found = tf.reshape(found, [rows, heads * group, length, size])
        found = tf.reshape(tf.transpose(found, [0, 2, 1, 3]), [rows, length, heads * group * size])
        return self._projected(f"{name}.o_proj", found)

    def _mlp(self, name: str, x: tf.Tensor) -> tf.Tensor:
        gate, up = self._layers[f"{name}.gate_proj"](x), self._layers[f"{name}.up_proj"](x)
        return self._projected(f"{name}.down_proj", ACTIVATIONS[self._model.hidden_act](gate) * up)

    def _projected(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """What is added to the residual stream, whose dtype is that of the weights."""
        return tf.cast(self._layers[name](x), self._model.dtype)

    def _rotation(self, length: int, positions: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Cosines and sines, both (rows or 1, 1, length, head_dim / 2)."""
        tables = rope_table(self._model.rope_parameters, self._model.head_size, length)
        cosines, sines = (tf.constant(table, self._model.dtype)[None] for table in tables)
        if positions is not None:
            cosines, sines = tf.gather(cosines[0], positions), tf.gather(sines[0], positions)
        return cosines[:, None], sines[:, None]

    def _layer(self, weight: Weight, bias: bool) -> keras.layers.Layer:
        model, (outputs, *inputs) = self._model, weight.shape
        if weight.embedding:
            layer = keras.layers.Embedding(outputs, *inputs, dtype=model.dtype)
        elif "norm" in weight.name:
            layer = keras.layers.RMSNormalization(epsilon=model.rms_norm_eps, dtype=model.dtype)
        else:
            layer = keras.layers.Dense(outputs, use_bias=bias, dtype=model.dtype)
            if self._compute_dtype != model.dtype:
                round_products(self._compute_dtype, layer)
        layer.build((None, None, inputs[0] if inputs else outputs))
        return layer

    def _variable(self, name: str) -> tf.Variable:
        module, leaf = name.rsplit(".", 1)
        layer = self._layers[module]
        if leaf == "bias":
            return layer.bias.value
        kinds = {keras.layers.Embedding: "embeddings", keras.layers.RMSNormalization: "scale"}
        return getattr(layer, kinds.get(type(layer), "kernel")).value


def _turned(x: tf.Tensor, rotation: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Heads, (rows, heads, length, head_dim), turned by the angles of their positions."""
    cosines, sines = rotation
    first, second = tf.split(x, 2, axis=-1)
    return tf.concat([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def _attention_mask(length: int, documents: tf.Tensor | None) -> tf.Tensor:
    """Whether each token may look at each other one: back, in its own document.

    Returns:
        bool, (1 or rows, 1, 1, length, length).
    """
    back = tf.range(length)[:, None] >= tf.range(length)
    if documents is None:
        return back[None, None, None]
    same = documents[:, :, None] == documents[:, None, :]
    return (back & same)[:, None, None]
