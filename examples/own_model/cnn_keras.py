"""A convolutional network in Keras; `cnn_torch.py` is its twin."""

from __future__ import annotations

import keras
from keras import layers


def cnn(channels: int = 16, classes: int = 10) -> keras.Model:
    """Two convolutions and a linear head, for pictures of 8 by 8; logits, (rows, classes)."""
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(channels, 3, padding="same", activation="relu", name="conv1")(image)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(2 * channels, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.Flatten()(x)
    return keras.Model(image, layers.Dense(classes, name="head")(x))
