"""`fit` whose rank 1 is told to stop: all leave it after the same update, and go on as if nothing was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

import hvdtrain.keras as hvd
from hvdtrain.core.checkpoints.listing import list_checkpoints
from hvdtrain.keras import callbacks
from tests.dropin import keras_cases as cases
from tests.dropin.keras_checkpoint import Losses, fit, unbroken
from tests.dropin.keras_loader import Rows
from tests.dropin.preemption import forget, preempted, tell


class Told(keras.callbacks.Callback):
    """Rank 1 is told to stop when a batch of this `fit` begins: the second, say."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self._left = batch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if not self._left and hvd.rank() == 1:
            tell()


def saved(directory: str) -> list[int]:
    found = [
        each.step for each in list_checkpoints(Path(directory), every_byte=True) if each.state == "whole"
    ]
    hvd.allgather_object(None)
    return found


def check_fit_whose_rank_is_told_to_stop_goes_on_as_if_it_had_not() -> None:
    whole, losses = unbroken()
    found: list[float] = []
    # In the middle of an epoch; in the last update of one, which then ends; in the last of all: `fit` does.
    for batch, step in ((4, 4), (2, 6)):
        given = Losses()
        with preempted():
            fit("told", more=(given, Told(batch), callbacks.StallGuard()))
        found += given.found
        assert saved("told")[-1] == step
        assert len(found) == step
    resumed, rest = fit("told", more=(Told(3),))
    forget()
    assert found + rest == losses
    cases.assert_same(resumed, whole, 0.0)


def check_a_model_that_was_fitted_before_tells_whatever_its_average_is() -> None:
    """Nothing but the flag is summed besides gradients, and the step was traced without it."""
    model, data = cases.model(), hvd.dataset(Rows(), 8, seed=3)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), gradient_accumulation_steps=2)
    model.compile(optimizer, loss=cases.loss())
    given: list[Any] = [callbacks.BroadcastGlobalVariables(0)]
    model.fit(data, epochs=1, verbose=0, callbacks=given)
    # Of six batches, three windows are the first epoch's and the one before; the fourth is two of the next.
    given += [Told(4), callbacks.Checkpoint("others", dataset=data)]
    with preempted():
        model.fit(data, epochs=4, verbose=0, callbacks=given)
    assert saved("others") == [3, 4]
