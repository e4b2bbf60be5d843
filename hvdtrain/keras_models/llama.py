"""Llama of Keras' layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from hvdtrain.core.families.llama import ModelSpec
from hvdtrain.core.families.rope import rope_table
from hvdtrain.keras_models.layers import ACTIVATIONS, Layers, places, seen, text_inputs


def build(model: ModelSpec, folder: Path) -> keras.Model:
    """Build a saved model.

    Args:
        model: the hyper-parameters.
        folder: holds its weights.

    Returns:
        A model of `input_ids` and `attention_mask`, (rows, length) each; logits of the next token,
        (rows, length, vocab_size).
    """
    layers = Layers(model)
    inputs = text_inputs("input_ids", "attention_mask")
    ids, mask = inputs.values()
    tables = rope_table(model.rope_parameters, model.head_size, model.max_position_embeddings)
    named = zip(("rotary.cosines", "rotary.sines"), tables, strict=True)
    rotation = [layers.table(name, table)(places(ids))[:, :, None] for name, table in named]
    tokens, looked_at = layers.embedding("model.embed_tokens"), seen(mask, causal=True)
    hidden = tokens(ids)
    for i in range(model.num_hidden_layers):
        hidden = _layer(model, layers, f"model.layers.{i}", hidden, rotation, looked_at)
    hidden = layers.norm("model.norm", hidden, model.rms_norm_eps)
    return layers.model(inputs, layers.lm_head(tokens, hidden, model.tie_word_embeddings), folder)


def _layer(
    model: ModelSpec, layers: Layers, name: str, hidden: Any, rotation: list[Any], looked_at: Any
) -> Any:
    normed = layers.norm(f"{name}.input_layernorm", hidden, model.rms_norm_eps)
    query, key, value = (layers.linear(f"{name}.self_attn.{part}_proj", normed) for part in "qkv")
    query, key = (_turned(layers.heads(x, model.head_size), rotation) for x in (query, key))
    parts = query, key, value
    found = layers.attention(parts, model.head_size, looked_at, model.attention_dropout)
    hidden = hidden + layers.linear(f"{name}.self_attn.o_proj", found)
    normed = layers.norm(f"{name}.post_attention_layernorm", hidden, model.rms_norm_eps)
    gate, up = (layers.linear(f"{name}.mlp.{part}_proj", normed) for part in ("gate", "up"))
    return hidden + layers.linear(f"{name}.mlp.down_proj", ACTIVATIONS[model.hidden_act](gate) * up)


def _turned(x: Any, rotation: list[Any]) -> Any:
    """Heads, (rows, length, heads, head_dim), turned by the angles of their positions."""
    cosines, sines = rotation
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
