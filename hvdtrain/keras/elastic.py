"""Horovod's elastic names for Keras 3; in place of `horovod.keras.elastic`."""

from __future__ import annotations

from typing import Any

import keras
from horovod._keras import elastic as _horovods
from horovod.tensorflow.elastic import run

from hvdtrain.tensorflow.elastic import TensorFlowKerasState

__all__ = ["CommitStateCallback", "KerasState", "UpdateBatchStateCallback", "UpdateEpochStateCallback", "run"]


class KerasState(TensorFlowKerasState):
    """A model's and its optimizer's variables, and any objects beside them."""


class CommitStateCallback(_horovods.CommitStateCallbackImpl, keras.callbacks.Callback):  # type: ignore[misc]
    """Commits a state every so many batches, and at the end of each epoch."""

    def __init__(self, state: Any, batches_per_commit: int = 1) -> None:
        """Choose how often; arguments are Horovod's."""
        super().__init__(keras.backend, state, batches_per_commit)


class UpdateBatchStateCallback(_horovods.UpdateBatchStateCallbackImpl, keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the number of the last batch in `state.batch`.

    Keras 3 does not let a callback shorten an epoch, so the first one after a restart has all its steps.
    """

    def __init__(self, state: Any) -> None:
        """Choose the state; arguments are Horovod's."""
        super().__init__(keras.backend, state)


class UpdateEpochStateCallback(_horovods.UpdateEpochStateCallbackImpl, keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the number of epochs done in `state.epoch`."""

    def __init__(self, state: Any) -> None:
        """Choose the state; arguments are Horovod's."""
        super().__init__(keras.backend, state)
