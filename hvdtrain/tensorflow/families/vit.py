"""ViT of KerasHub's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras_hub.models import ViTBackbone

from hvdtrain.core.families import vit
from hvdtrain.core.families.vit import ModelSpec
from hvdtrain.tensorflow.families._images import for_each_target, pixels_of
from hvdtrain.tensorflow.families._keras import ACTIVATIONS, Whole, round_products, set_attention_scale
from hvdtrain.tensorflow.families._recompute import recomputed
from hvdtrain.tensorflow.weights import Parameters


class Network:
    """The two layers of `ViTBackbone`, and a classifier that takes the [CLS] token."""

    # Layers are called through it, in the order of the forward pass.
    gathered: Any = Whole()

    def __init__(self, model: ModelSpec, compute_dtype: str) -> None:
        """Build the model; see `Network` of `hvdtrain.core.families.family`."""
        self._model, self._compute_dtype = model, compute_dtype
        backbone = ViTBackbone(
            image_shape=(model.image_size, model.image_size, model.num_channels),
            patch_size=model.patch_size,
            num_layers=model.num_hidden_layers,
            num_heads=model.num_attention_heads,
            hidden_dim=model.hidden_size,
            mlp_dim=model.intermediate_size,
            dropout_rate=model.hidden_dropout_prob,
            attention_dropout=model.attention_probs_dropout_prob,
            layer_norm_epsilon=model.layer_norm_eps,
            dtype=model.dtype,
        )
        # Called one after the other, since the input of the whole model is float32 whatever the dtype.
        self._embeddings, self._encoder = backbone.layers[1:]
        self._layers: list[Callable[..., tf.Tensor]] = list(self._encoder.encoder_layers)
        self._head = keras.layers.Dense(model.num_labels, dtype=model.dtype, name="predictions")
        self._head.build((None, None, model.hidden_size))
        self._obey()
        self.variables = [*backbone.variables, *self._head.variables]
        found = {v.path: v.value for v in self.variables}
        self.classes = model.num_labels
        self.parameters: Parameters = {
            name: tuple(found[path] for path in paths) for name, paths in vit.keras_paths(model).items()
        }

    def gradient_checkpointing_enable(self) -> None:
        """Compute layers again in the backward pass, and keep nothing but their inputs."""
        self._layers = [recomputed(layer, layer) for layer in self._encoder.encoder_layers]

    def features(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """The last hidden state of the [CLS] token, once for each target: (rows, targets, hidden_size)."""
        embedded = self.gathered(self._embeddings, pixels_of(inputs, self._model.dtype))
        hidden = self._encoder.dropout(tf.cast(embedded, self._model.dtype), training=training)
        for layer in self._layers:
            hidden = self.gathered(layer, hidden, training=training)
        return for_each_target(self.gathered(self._encoder.layer_norm, hidden)[:, 0], inputs)

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """The classifier, (rows, targets, num_labels)."""
        return self.gathered.head(self._head, features)

    def _obey(self) -> None:
        # KerasHub 0.32 fixes the GELU, whose constant TensorFlow rounds to float32.
        model, products = self._model, [self._embeddings.patch_embedding, self._head]
        for layer in self._encoder.encoder_layers:
            set_attention_scale(layer.mha, model.hidden_size // model.num_attention_heads, model.dtype)
            if not model.qkv_bias:
                # KerasHub's option takes the bias behind attention as well.
                for part in (layer.mha.query_dense, layer.mha.key_dense, layer.mha.value_dense):
                    part.bias = None
            layer.mlp.dense_1.activation = ACTIVATIONS[model.hidden_act]
            layer.mlp.call = _with_one_dropout(layer.mlp)
            products += [layer.mha, layer.mlp.dense_1, layer.mlp.dense_2]
        if self._compute_dtype != model.dtype:
            round_products(self._compute_dtype, *products)


def _with_one_dropout(mlp: keras.layers.Layer) -> Callable[[tf.Tensor], tf.Tensor]:
    """The feed-forward part as Transformers has it: KerasHub's drops what is inside as well."""
    return lambda inputs: mlp.dropout(mlp.dense_2(mlp.dense_1(inputs)))
