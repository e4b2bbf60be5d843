"""Learning rates that follow epochs or batches, with the momentum they were made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import horovod.tensorflow as hvd
import keras

from hvdtrain.core.errors import SpecError
from hvdtrain.keras.callbacks.base import Callback
from hvdtrain.tensorflow.dropin.agreement import check_structure

Multiplier = float | Callable[[float], float]


class LearningRateSchedule(Callback):
    """Sets the learning rate to `initial_lr` times a multiplier, within a range of epochs."""

    def __init__(
        self,
        initial_lr: float | None = None,
        multiplier: Multiplier = 1.0,
        start_epoch: int = 0,
        end_epoch: float | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        """Choose the schedule; arguments are Horovod's.

        Args:
            initial_lr: what is multiplied; None: the optimizer's learning rate when training begins.
            multiplier: a function of the epoch, counted from 0; or a number, to the power of the epochs
                since `start_epoch`.
            start_epoch: first epoch in which the rate is set.
            end_epoch: the epoch from which on it is not set any more; None: never.
            staircase: whether it is set once an epoch; else with every batch, and the epoch is a fraction.
            momentum_correction: whether a velocity that holds learning rates, as Keras' SGD and RMSprop have
                it, is scaled with the rate (Goyal et al. 2017, arXiv:1706.02677, section 2.1).
            steps_per_epoch: batches of an epoch; None: what `fit` says.
        """
        super().__init__()
        self.initial_lr, self.multiplier = initial_lr, multiplier
        self.start_epoch, self.end_epoch = start_epoch, end_epoch
        self.staircase, self.momentum_correction = staircase, momentum_correction
        self.steps_per_epoch = steps_per_epoch
        self._epoch = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Learn what was not given."""
        super().on_train_begin(logs)
        if isinstance(_inner(self.model)._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            raise SpecError(
                f"{type(self).__name__}: the optimizer's learning_rate is a schedule, which cannot be set; "
                "give learning_rate a number, and leave out Keras 2's decay=, which makes a schedule of it"
            )
        if self.initial_lr is None:
            self.initial_lr = self._rate()
        self.steps_per_epoch = self.steps_per_epoch or self.params.get("steps")
        self._compare()
        if not self.staircase and not self.steps_per_epoch:
            raise SpecError(
                f"{type(self).__name__}: steps_per_epoch: fit does not know how many batches an epoch has; "
                "give their number"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of an epoch."""
        self._epoch = epoch
        if self.staircase:
            self._set(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of a batch."""
        if not self.staircase:
            assert self.steps_per_epoch is not None  # on_train_begin
            self._set(self._epoch + batch / self.steps_per_epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Report the rate."""
        if logs is not None:
            logs["lr"] = self._rate()

    def _compare(self) -> None:
        # Ranks whose rates differed would train apart from the same gradients.
        named = ("initial_lr", "start_epoch", "end_epoch", "staircase", "steps_per_epoch", "multiplier")
        values = {f"{type(self).__name__}: {name}": getattr(self, name) for name in named}
        check_structure([], options={n: value for n, value in values.items() if not callable(value)})

    def _set(self, epoch: float) -> None:
        if epoch < self.start_epoch or (self.end_epoch is not None and epoch >= self.end_epoch):
            return
        assert self.initial_lr is not None  # on_train_begin
        before, rate = self._rate(), self.initial_lr * self._factor(epoch)
        if rate == before:
            return
        self.model.optimizer.learning_rate = rate
        if self.momentum_correction and before:
            for velocity in _velocities(_inner(self.model)):
                velocity.assign(velocity * (rate / before))

    def _factor(self, epoch: float) -> float:
        if callable(self.multiplier):
            return self.multiplier(epoch)
        return self.multiplier ** (epoch - self.start_epoch)

    def _rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))


class LearningRateWarmup(LearningRateSchedule):
    """Raises the learning rate, batch by batch, from `initial_lr` / ranks to it (Goyal et al. 2017)."""

    def __init__(
        self,
        initial_lr: float | None = None,
        warmup_epochs: float = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        """Choose the warm-up; arguments are Horovod's.

        Args:
            initial_lr: the rate at the end, scaled for all ranks.
            warmup_epochs: how long.
            momentum_correction: as of `LearningRateSchedule`.
            steps_per_epoch: likewise.
            verbose: whether rank 0 says when it is done.
        """
        super().__init__(
            initial_lr, self._warm, 0, warmup_epochs, False, momentum_correction, steps_per_epoch
        )
        self.warmup_epochs, self.verbose = warmup_epochs, verbose

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Report the rate."""
        super().on_epoch_end(epoch, logs)
        if self.verbose and epoch == self.warmup_epochs - 1 and hvd.rank() == 0:
            print(
                f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to {self._rate():g}.", flush=True
            )

    def _warm(self, epoch: float) -> float:
        assert self.steps_per_epoch is not None  # LearningRateSchedule.on_train_begin
        # As if a batch later, so that the last batch of the warm-up has the full rate.
        done = (epoch + 1 / self.steps_per_epoch) / self.warmup_epochs
        return (1 + done * (hvd.size() - 1)) / hvd.size()


def _inner(model: keras.Model) -> keras.optimizers.Optimizer:
    optimizer = model.optimizer
    return getattr(optimizer, "inner_optimizer", optimizer)


def _velocities(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    if not getattr(optimizer, "momentum", 0.0):
        return []
    found = getattr(optimizer, "momentums", None) or getattr(optimizer, "_momentums", [])
    # Not those that other ranks keep.
    return [each for each in found if isinstance(each, keras.Variable)]
