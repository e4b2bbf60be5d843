"""The micro-batches of a window: when they are complete, and what their sum is divided by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from hvdtrain.core.dropin import Settings
from hvdtrain.tensorflow.buckets import GradBucket
from hvdtrain.tensorflow.driver import Driver


class Accumulation:
    """Adds up the micro-batches of a window, in variables; a window's end is a branch of the graph.

    Attributes:
        settings: the wrapper's arguments.
        updates: how many were applied, a variable.
        windows: how many were reduced, a variable.
        told: 1 where this rank was told to stop, a variable.
        ranks_told: how many ranks had been, as of the last window that has summed it, a variable.
    """

    def __init__(self, settings: Settings, driver: Driver, buckets: Sequence[GradBucket]) -> None:
        """Make the variables; not in a graph.

        Args:
            settings: the wrapper's arguments.
            driver: sums samples over ranks.
            buckets: in which micro-batches add up.
        """
        self.settings, self._driver, self._buckets = settings, driver, buckets
        self.updates, self.windows, self._micro_batches = _counter(), _counter(), _counter()
        self._samples, self.told, self.ranks_told = _number(), _number(), _number()
        if settings.gradient_accumulation_steps > 1:
            for bucket in buckets:
                bucket.accumulate()

    @property
    def micro_batches(self) -> int:
        """How many the window has."""
        return int(self._micro_batches.numpy())

    def enter(
        self,
        flats: Sequence[tf.Tensor],
        samples: tf.Tensor,
        close: Callable[[Sequence[tf.Tensor], tf.Tensor], None],
    ) -> None:
        """Take in a micro-batch.

        Args:
            flats: its gradients, one tensor a bucket.
            samples: how many it has, a float64 scalar.
            close: called with the window's gradients and samples in the branch where this completes it.
        """
        steps = self.settings.gradient_accumulation_steps
        if steps == 1:
            close(flats, samples)
            return

        def last() -> None:
            whole = [bucket.whole(flat) for bucket, flat in zip(self._buckets, flats, strict=True)]
            close(whole, self._samples + samples)
            for bucket in self._buckets:
                bucket.start_window()
            for counter in (self._samples, self._micro_batches):
                counter.assign(tf.zeros_like(counter))

        def early() -> None:
            for bucket, flat in zip(self._buckets, flats, strict=True):
                bucket.add(flat)
            self._samples.assign_add(samples)
            self._micro_batches.assign_add(1)

        tf.cond(tf.equal(self._micro_batches, steps - 1), last, early)

    def scale_by_samples(self, samples: tf.Tensor) -> tf.Tensor:
        """What each bucket of the window is multiplied with before it is reduced, with `average="samples"`.

        Args:
            samples: this rank's in the window, a float64 scalar.
        """
        total = self.sum_with_told(samples)[0]
        steps = self.settings.gradient_accumulation_steps

        def scale(own: np.ndarray, every: np.ndarray) -> np.ndarray:
            return np.array(self.settings.closing_scale(steps, float(own), float(every)))

        return tf.ensure_shape(tf.numpy_function(scale, [samples, total], tf.float64, stateful=False), ())

    def sum_with_told(self, *values: tf.Tensor) -> list[tf.Tensor]:
        """Sum a window's numbers over ranks, and in the same message how many ranks were told to stop.

        Args:
            *values: this rank's, float64 scalars.
        """
        *sums, ranks_told = tf.unstack(self._driver.sum(tf.stack([*values, self.told]), "window"))
        self.ranks_told.assign(ranks_told)
        return sums

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the counters, and of what this rank has added up in the window under way."""
        return {name: variable.numpy() for name, variable in self._variables().items()}

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set what `read` read."""
        for name, variable in self._variables().items():
            variable.assign(arrays[name])

    def _variables(self) -> dict[str, tf.Variable]:
        totals = {f"total{i}": b.total for i, b in enumerate(self._buckets) if b.total is not None}
        counters = {"updates": self.updates, "micro": self._micro_batches, "windows": self.windows}
        return totals | counters | {"samples": self._samples}


def _number() -> tf.Variable:
    return tf.Variable(0.0, dtype=tf.float64, trainable=False)


def _counter() -> tf.Variable:
    return tf.Variable(0, dtype=tf.int64, trainable=False)
