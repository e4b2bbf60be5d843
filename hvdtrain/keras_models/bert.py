"""BERT of Keras' layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from hvdtrain.core.families.bert import CLASSIFIER, DECODER, POOLER, TIED_BIAS, ModelSpec, classifier_dropout
from hvdtrain.keras_models.layers import ACTIVATIONS, Layers, only, places, seen, text_inputs


def build(model: ModelSpec, folder: Path) -> keras.Model:
    """Build a saved model.

    Args:
        model: the hyper-parameters.
        folder: holds its weights.

    Returns:
        A model of `input_ids`, `token_type_ids` and `attention_mask`, (rows, length) each; logits for every
        token, (rows, length, vocab_size), or of a classifier, (rows, num_labels).
    """
    layers = Layers(model)
    inputs = text_inputs("input_ids", "token_type_ids", "attention_mask")
    ids, segments, mask = inputs.values()
    where, epsilon = "bert.embeddings", model.layer_norm_eps
    tokens = layers.embedding(f"{where}.word_embeddings")
    hidden = tokens(ids) + layers.embedding(f"{where}.position_embeddings")(places(ids))
    hidden = hidden + layers.embedding(f"{where}.token_type_embeddings")(segments)
    hidden = layers.norm(f"{where}.LayerNorm", hidden, epsilon)
    hidden, looked_at = layers.dropout(model.hidden_dropout_prob, hidden), seen(mask)
    for i in range(model.num_hidden_layers):
        hidden = _layer(model, layers, f"bert.encoder.layer.{i}", hidden, looked_at)
    if model.num_labels:
        pooled = ops.tanh(layers.linear(POOLER, hidden[:, 0]))
        logits = layers.linear(CLASSIFIER, layers.dropout(classifier_dropout(model), pooled))
    else:
        head = "cls.predictions.transform"
        found = ACTIVATIONS[model.hidden_act](layers.linear(f"{head}.dense", hidden))
        found = layers.norm(f"{head}.LayerNorm", found, epsilon)
        if model.tie_word_embeddings:
            logits = tokens(found, reverse=True) + layers.embedding(TIED_BIAS)(only(ids))
        else:
            logits = layers.linear(DECODER, found)
    return layers.model(inputs, logits, folder)


def _layer(model: ModelSpec, layers: Layers, name: str, hidden: Any, looked_at: Any) -> Any:
    rate, size = model.hidden_dropout_prob, model.hidden_size // model.num_attention_heads
    heads = [layers.linear(f"{name}.attention.self.{part}", hidden) for part in ("query", "key", "value")]
    found = layers.attention(heads, size, looked_at, model.attention_probs_dropout_prob)
    found = layers.dropout(rate, layers.linear(f"{name}.attention.output.dense", found))
    hidden = layers.norm(f"{name}.attention.output.LayerNorm", hidden + found, model.layer_norm_eps)
    inner = ACTIVATIONS[model.hidden_act](layers.linear(f"{name}.intermediate.dense", hidden))
    found = layers.dropout(rate, layers.linear(f"{name}.output.dense", inner))
    return layers.norm(f"{name}.output.LayerNorm", hidden + found, model.layer_norm_eps)
