"""Small models and data for the Keras checks, and the single process they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

import hvdtrain.keras as hvd

Batch = tuple[np.ndarray, np.ndarray]
CLASSES, FEATURES = 3, 6


def batches(sizes: Sequence[int], seed: int = 0, dtype: str = "float64") -> list[Batch]:
    """Batches of the given sizes; every rank draws the same."""
    random = np.random.default_rng(seed)
    return [
        (random.normal(size=(n, FEATURES)).astype(dtype), random.integers(0, CLASSES, n).astype("int32"))
        for n in sizes
    ]


def joined(parts: Sequence[Batch]) -> Batch:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def shares(parts: Sequence[Batch]) -> list[Batch]:
    """This rank's: batch i of rank r is number i * ranks + r."""
    return list(parts[hvd.rank() :: hvd.size()])


def windows(parts: Sequence[Batch], size: int) -> list[Batch]:
    """What one process takes for each update: so many batches in one."""
    return [joined(parts[i : i + size]) for i in range(0, len(parts), size)]


def model(seed: int = 0, dtype: str = "float64", dropout: float = 0.0) -> keras.Model:
    """Weights are drawn by NumPy."""
    layers = [
        keras.layers.Dense(8, activation="tanh", dtype=dtype),
        keras.layers.Dropout(dropout, seed=seed, dtype=dtype),
        keras.layers.Dense(CLASSES, dtype=dtype),
    ]
    made = keras.Sequential([keras.Input((FEATURES,), dtype=dtype), *layers])
    random = np.random.default_rng(seed)
    made.set_weights([random.normal(0.0, 0.5, w.shape) for w in made.weights])
    return made


def loss(reduction: str = "sum_over_batch_size", dtype: str = "float64") -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction, dtype=dtype)


def feed(parts: Sequence[Batch]) -> Iterator[Batch]:
    """For `fit`, whose epochs have `steps_per_epoch=len(parts)`."""
    while True:
        yield from parts


def train(
    optimizer: keras.optimizers.Optimizer,
    parts: Sequence[Batch],
    made: keras.Model | None = None,
    epochs: int = 1,
    callbacks: Sequence[Any] | None = None,
    reduction: str = "sum_over_batch_size",
    dtype: str = "float64",
    **compiling: Any,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """`fit` over the batches, in order, with our callback unless others are given."""
    made = made or model(dtype=dtype)
    made.compile(optimizer, loss=loss(reduction, dtype), **compiling)
    given = [hvd.callbacks.BroadcastGlobalVariables(0)] if callbacks is None else list(callbacks)
    history = made.fit(
        feed(parts), steps_per_epoch=len(parts), epochs=epochs, shuffle=False, verbose=0, callbacks=given
    )
    return made, history.history


def train_alone(
    optimizer: keras.optimizers.Optimizer,
    updates: Sequence[Batch],
    made: keras.Model | None = None,
    factor: float = 1.0,
    max_norm: float | None = None,
    reduction: str = "sum_over_batch_size",
    dtype: str = "float64",
) -> keras.Model:
    """One process, one update a batch, by Keras' own optimizer and a loop without hvdtrain."""
    import tensorflow as tf

    made = made or model(dtype=dtype)
    measure = loss(reduction, dtype)
    for x, y in updates:
        with tf.GradientTape() as tape:
            value = optimizer.scale_loss(measure(y, made(x, training=True)) * factor)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(value, made.trainable_variables)]
        if max_norm is not None:
            norm = np.sqrt(sum(np.sum(np.square(g.numpy())) for g in gradients))
            gradients = [g * min(1.0, max_norm / (norm + 1e-6)) for g in gradients]
        optimizer.apply(gradients, made.trainable_variables)
    return made


def assert_same(found: keras.Model, expected: keras.Model, tolerance: float) -> None:
    for ours, theirs in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
