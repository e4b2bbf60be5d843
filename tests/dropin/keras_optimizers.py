"""Checks on two ranks: every optimizer of Keras 3, saved and loaded, against one process."""

from __future__ import annotations

import keras
import tensorflow as tf

import hvdtrain.keras as hvd
from tests.dropin import keras_cases as cases
from tests.dropin.keras_cases import shares, windows

NAMES = [
    "SGD",
    "Adam",
    "AdamW",
    "RMSprop",
    "Adagrad",
    "Adadelta",
    "Adamax",
    "Nadam",
    "Ftrl",
    "Lion",
    "Lamb",
    "Adafactor",
    "Muon",
    "LossScaleOptimizer",
]

# Keras' own code mixes float32 into them.
FLOAT32_ONLY = {"Muon"}


def make(name: str) -> keras.optimizers.Optimizer:
    if name == "LossScaleOptimizer":
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05))
    return getattr(keras.optimizers, name)(learning_rate=0.05)


def check_every_optimizer() -> None:
    failed = {}
    for name in NAMES:
        try:
            _compare(name)
        except (AssertionError, TypeError, tf.errors.OpError) as error:
            failed[name] = str(error)[:500]
    assert not failed, failed


def _compare(name: str) -> None:
    # Where a gradient is all rounding, optimizers that divide by its size amplify it.
    dtype, tolerance = ("float32", 1e-4) if name in FLOAT32_ONLY else ("float64", 1e-9)
    parts = cases.batches([4] * 12, dtype=dtype)
    expected = cases.train_alone(make(name), windows(parts, 4), dtype=dtype)
    optimizer = hvd.DistributedOptimizer(make(name), gradient_accumulation_steps=2)
    assert type(optimizer) is getattr(keras.optimizers, name)
    ours, _ = cases.train(optimizer, shares(parts), dtype=dtype)
    cases.assert_same(ours, expected, tolerance)
    path = f"{name}{hvd.rank()}.keras"
    ours.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is type(optimizer)
    for saved, variable in zip(optimizer.variables, loaded.optimizer.variables, strict=True):
        assert (saved.numpy() == variable.numpy()).all()
