"""Models of a user's in Keras; `torch_models.py` has their twins under the same names."""

from __future__ import annotations

import sys

import keras
from keras import layers

from hvdtrain.core.process.environment import launched_rank
from tests.jobs.runs import ROOT

sys.path.append(str(ROOT / "examples" / "own_model"))
from cnn_keras import cnn as CNN

__all__ = ["CNN"]


def Scores(classes: int = 3) -> keras.Model:
    x = keras.Input((6,), name="x")
    hidden = layers.Dense(8, activation="tanh", name="first")(x)
    return keras.Model(x, layers.Dense(classes, name="second")(hidden))


def Value() -> keras.Model:
    x = keras.Input((6,), name="x")
    hidden = layers.Dense(8, activation="tanh", name="first")(x)
    return keras.Model(x, layers.Reshape(())(layers.Dense(1, name="second")(hidden)))


def Fixed(dropout: float = 0.0) -> keras.Model:
    first, second = (keras.initializers.GlorotUniform(seed) for seed in (1, 2))
    x = keras.Input((6,), name="x")
    hidden = layers.Dense(8, activation="tanh", kernel_initializer=first, name="first")(x)
    hidden = layers.Dropout(dropout)(hidden)
    return keras.Model(x, layers.Dense(3, kernel_initializer=second, name="second")(hidden))


def Dropped() -> keras.Model:
    return Fixed(0.2)


def Tags() -> keras.Model:
    ids = keras.Input((None,), dtype="int32", name="ids")
    hidden = layers.Activation("tanh")(layers.Embedding(11, 8, name="embedding")(ids))
    return keras.Model(ids, layers.Dense(4, name="head")(hidden))


def Normed() -> keras.Model:
    x = keras.Input((6,), name="x")
    frozen = layers.Dense(6, name="frozen", trainable=False)(x)
    norm = layers.BatchNormalization(
        momentum=0.9,
        epsilon=1e-3,
        moving_mean_initializer=keras.initializers.Constant(0.5 * (launched_rank() or 0)),
        name="norm",
    )
    hidden = layers.ReLU()(norm(layers.Dense(8, name="first")(frozen)))
    return keras.Model(x, layers.Dense(3, name="head")(hidden))
