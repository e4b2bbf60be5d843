"""Keras' and TensorFlow's random generators, from which dropout is drawn."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Keras' name of every such state.
_STATE = "seed_generator_state"


class Generators:
    """Those of this rank: one for each layer that draws, and TensorFlow's global one."""

    def __init__(self, network: Any) -> None:
        """Find them.

        Args:
            network: has the layers' states among its variables.
        """
        whole = getattr(network, "module", network)
        found = [v.value for v in getattr(whole, "variables", ()) if v.path.rpartition("/")[2] == _STATE]
        self._layers = {f"layer.{index}": state for index, state in enumerate(found)}

    def read(self) -> dict[str, np.ndarray]:
        """Copies of their states; see `GeneratorState.read`."""
        return {name: state.numpy().copy() for name, state in self._states().items()}

    def write(self, states: Mapping[str, np.ndarray]) -> None:
        """Set their states; see `GeneratorState.write`."""
        for name, state in self._states().items():
            state.assign(states[name])

    def seed(self, seed: int) -> None:
        """Start them from a seed; see `GeneratorState.seed`."""
        keras.utils.set_random_seed(seed)
        tf.random.get_global_generator().reset_from_seed(seed)
        for state in self._layers.values():
            # As Keras does for a layer that is given no seed.
            state.assign([random.randint(1, int(1e9)), 0])

    def _states(self) -> dict[str, tf.Variable]:
        return {**self._layers, "global": tf.random.get_global_generator().state}
