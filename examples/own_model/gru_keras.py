"""A recurrent language model in Keras."""

from __future__ import annotations

import keras
from keras import layers


def language_model(width: int = 128, symbols: int = 256) -> keras.Model:
    """Predicts the byte behind each byte of a text: logits, (rows, length, symbols)."""
    input_ids = keras.Input((None,), dtype="int32", name="input_ids")
    # PyTorch's default; Keras' starts twenty times smaller, and learns more slowly.
    normal = keras.initializers.RandomNormal(stddev=1.0)
    x = layers.Embedding(symbols, width, embeddings_initializer=normal, name="embedding")(input_ids)
    x = layers.GRU(width, return_sequences=True, name="gru")(x)
    return keras.Model(input_ids, layers.Dense(symbols, name="head")(x))
