"""Checks on two ranks: every optimizer of Keras 3, saved and loaded, against one process."""

from __future__ import annotations

import keras

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


def make(name: str) -> keras.optimizers.Optimizer:
    if name == "LossScaleOptimizer":
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05))
    return getattr(keras.optimizers, name)(learning_rate=0.05)


def check_every_optimizer() -> None:
    failed = {}
    for name in NAMES:
        try:
            _compare(name)
        except AssertionError as error:
            failed[name] = str(error)
    assert not failed, failed


def _compare(name: str) -> None:
    parts = cases.batches([4] * 12)
    optimizer = hvd.DistributedOptimizer(make(name), gradient_accumulation_steps=2)
    assert type(optimizer) is getattr(keras.optimizers, name)
    ours, _ = cases.train(optimizer, shares(parts))
    alone = make(name)
    expected = cases.train_alone(alone, windows(parts, 4))
    # Where the gradient is all rounding, optimizers that divide by its size amplify it.
    cases.assert_same(ours, expected, 1e-9)
    path = f"{name}{hvd.rank()}.keras"
    ours.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is type(optimizer)
    for saved, variable in zip(optimizer.variables, loaded.optimizer.variables, strict=True):
        assert (saved.numpy() == variable.numpy()).all()
