"""ViT of Keras' layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from hvdtrain.core.families.vit import ModelSpec
from hvdtrain.keras_models.layers import ACTIVATIONS, Layers, only, pixel_values, places


def build(model: ModelSpec, folder: Path) -> keras.Model:
    """Build a saved model.

    Args:
        model: the hyper-parameters.
        folder: holds its weights.

    Returns:
        A model of normalised pixels, (rows, height, width, channels); logits, (rows, num_labels).
    """
    layers = Layers(model)
    where, pixels = "vit.embeddings", pixel_values(model.num_channels, model.dtype, model.image_size)
    patches = layers.convolution(f"{where}.patch_embeddings.projection", pixels, model.patch_size)
    patches = keras.layers.Reshape((-1, model.hidden_size), dtype=model.dtype)(patches)
    token = layers.embedding(f"{where}.cls_token")(only(patches[:, :, 0]))
    hidden = ops.concatenate([token, patches], axis=1)
    hidden = hidden + layers.embedding(f"{where}.position_embeddings")(places(hidden[:, :, 0]))
    hidden = layers.dropout(model.hidden_dropout_prob, hidden)
    for i in range(model.num_hidden_layers):
        hidden = _layer(model, layers, f"vit.encoder.layer.{i}", hidden)
    first = layers.norm("vit.layernorm", hidden, model.layer_norm_eps)[:, 0]
    return layers.model(pixels, layers.linear("classifier", first), folder)


def _layer(model: ModelSpec, layers: Layers, name: str, hidden: Any) -> Any:
    rate, size = model.hidden_dropout_prob, model.hidden_size // model.num_attention_heads
    normed = layers.norm(f"{name}.layernorm_before", hidden, model.layer_norm_eps)
    parts = ("query", "key", "value")
    heads = [layers.linear(f"{name}.attention.attention.{part}", normed) for part in parts]
    found = layers.attention(heads, size, None, model.attention_probs_dropout_prob)
    hidden = hidden + layers.dropout(rate, layers.linear(f"{name}.attention.output.dense", found))
    normed = layers.norm(f"{name}.layernorm_after", hidden, model.layer_norm_eps)
    inner = ACTIVATIONS[model.hidden_act](layers.linear(f"{name}.intermediate.dense", normed))
    return hidden + layers.dropout(rate, layers.linear(f"{name}.output.dense", inner))
