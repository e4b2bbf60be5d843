"""What outlives a step: counters, compression's state, and the window of micro-batches under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from hvdtrain.core.compression.protocol import State
from hvdtrain.core.dropin import Settings, keeps_residuals
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.tensorflow.driver import Driver
from hvdtrain.tensorflow.dropin.messages import broadcast_variables


class Kept:
    """The variables behind `Gradients`, read and set outside of the compiled step."""

    settings: Settings
    buckets: tuple[Bucket, ...]
    _driver: Driver
    _states: list[State]
    _totals: list[tf.Variable]
    _samples: tf.Variable
    _updates: tf.Variable
    _micro: tf.Variable
    _windows: tf.Variable

    @property
    def keeps_residuals(self) -> bool:
        """Whether any policy adds to an update what it did not send of the last one."""
        policies = map(self.settings.rules.policy, self.buckets)
        return keeps_residuals(zip(policies, self._states, strict=True))

    @property
    def wire_bytes(self) -> int:
        """Bytes of gradients this rank has handed to collectives so far."""
        return int(self._driver.wire_bytes.numpy())

    @property
    def applied(self) -> int:
        """How many updates there have been."""
        return int(self._updates.numpy())

    @property
    def windows(self) -> int:
        """How many windows have been reduced."""
        return int(self._windows.numpy())

    @property
    def micro_batches(self) -> int:
        """How many have been taken in of a window that is not complete."""
        return int(self._micro.numpy())

    @property
    def may_fall_behind(self) -> bool:
        """Whether compression has state that ranks change alike with each update."""
        return bool(self._known_to_all())

    def catch_up(self, root_rank: int) -> None:
        """Take over from a rank what all that took part in its updates know of compression."""
        broadcast_variables([self._updates, self._windows, *self._known_to_all()], root_rank)

    def _known_to_all(self) -> list[tf.Variable]:
        return [
            variable
            for bucket, state in zip(self.buckets, self._states, strict=True)
            for name, variable in state.items()
            if name not in self.settings.rules.policy(bucket).residuals
        ]

    def read(self) -> list[dict[str, np.ndarray]]:
        """Copies of this rank's policy state, a mapping a bucket."""
        return [{name: v.numpy() for name, v in state.items()} for state in self._states]

    def write(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Set what `read` read."""
        for state, arrays in zip(self._states, states, strict=True):
            for name, variable in state.items():
                variable.assign(arrays[name])

    def read_window(self) -> dict[str, np.ndarray]:
        """Copies of the counters, and of what this rank has added up in the window under way."""
        return {name: variable.numpy() for name, variable in self._window().items()}

    def write_window(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set what `read_window` read."""
        for name, variable in self._window().items():
            variable.assign(arrays[name])

    def _window(self) -> dict[str, tf.Variable]:
        totals = {f"total{i}": total for i, total in enumerate(self._totals)}
        counters = {"updates": self._updates, "micro": self._micro, "windows": self._windows}
        return totals | counters | {"samples": self._samples}
