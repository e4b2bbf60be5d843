"""Gradient checkpointing: layers that are computed again in the backward pass (Chen et al. 2016)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from hvdtrain.core.families.batch_norm import recomputing


def recompute_layer(layer: keras.layers.Layer) -> None:
    """Have a built layer keep nothing but its first argument in training, and compute the rest again.

    Args:
        layer: its `call` takes one tensor that has a gradient, first, and returns one.
    """
    layer.call = recomputed(layer.call, layer)


def recomputed(call: Callable[..., tf.Tensor], *layers: keras.layers.Layer) -> Callable[..., tf.Tensor]:
    """A function that is computed again in the backward pass, with the same dropout.

    Args:
        call: takes one tensor that has a gradient, first, and perhaps `training` by name.
        layers: which it uses; those that drop out draw the same numbers again.
    """
    seeds = [
        part.seed_generator.state.value
        for layer in layers
        for part in layer._flatten_layers()
        if getattr(part, "seed_generator", None) is not None
    ]

    # Keras reads the names of the arguments of a layer's call.
    @functools.wraps(call)
    def wrapper(x: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        if not kwargs.get("training"):
            return call(x, *args, **kwargs)
        replay = _Replay(lambda hidden: call(hidden, *args, **kwargs), seeds)
        found: tf.Tensor = tf.recompute_grad(replay)(x)
        return found

    return wrapper


class _Replay:
    """A function that draws from its generators at the first call, and the same again at every later one."""

    def __init__(self, function: Callable[[tf.Tensor], tf.Tensor], seeds: Sequence[tf.Variable]) -> None:
        self._function, self._seeds = function, seeds
        self._first: list[tf.Tensor] | None = None

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        if self._first is None:
            self._first = self._states()
            return self._function(x)
        now = self._states()
        self._set(self._first)
        with recomputing():
            found = self._function(x)
        self._set(now)
        return found

    def _states(self) -> list[tf.Tensor]:
        return [tf.identity(seed) for seed in self._seeds]

    def _set(self, states: Sequence[tf.Tensor]) -> None:
        for seed, state in zip(self._seeds, states, strict=True):
            seed.assign(state)
