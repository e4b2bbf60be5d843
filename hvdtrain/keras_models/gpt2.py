"""GPT-2 of Keras' layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from hvdtrain.core.families.gpt2 import ModelSpec
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
    tokens = layers.embedding("transformer.wte")
    hidden = tokens(ids) + layers.embedding("transformer.wpe")(places(ids))
    hidden, looked_at = layers.dropout(model.embd_pdrop, hidden), seen(mask, causal=True)
    for i in range(model.n_layer):
        hidden = _layer(model, layers, f"transformer.h.{i}", hidden, looked_at)
    hidden = layers.norm("transformer.ln_f", hidden, model.layer_norm_epsilon)
    return layers.model(inputs, layers.lm_head(tokens, hidden, model.tie_word_embeddings), folder)


def _layer(model: ModelSpec, layers: Layers, name: str, hidden: Any, looked_at: Any) -> Any:
    rate, epsilon, size = model.resid_pdrop, model.layer_norm_epsilon, model.n_embd // model.n_head
    fused = layers.linear(f"{name}.attn.c_attn", layers.norm(f"{name}.ln_1", hidden, epsilon))
    found = layers.attention(ops.split(fused, 3, axis=-1), size, looked_at, model.attn_pdrop)
    hidden = hidden + layers.dropout(rate, layers.linear(f"{name}.attn.c_proj", found))
    inner = layers.linear(f"{name}.mlp.c_fc", layers.norm(f"{name}.ln_2", hidden, epsilon))
    inner = ACTIVATIONS[model.activation_function](inner)
    return hidden + layers.dropout(rate, layers.linear(f"{name}.mlp.c_proj", inner))
