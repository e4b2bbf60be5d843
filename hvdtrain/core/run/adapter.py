"""What a framework has to supply: one update, one evaluation batch, collectives, and its state as arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.data import Batch, Window
from hvdtrain.core.run.results import UpdateResult


class Adapter(ABC):
    """The part of a trainer that differs between frameworks."""

    # The adapter's own classes; their states are read and written alike.
    _model: Any
    _optimizer: Any
    _reducer: Any

    @abstractmethod
    def _build(self) -> None:
        """Create the model, the reducer and the optimizer."""

    @abstractmethod
    def update(
        self,
        window: Window,
        divisor: float,
        next_weight: float,
        learning_rate: float,
        update: int,
        loss_scale: float,
    ) -> UpdateResult:
        """One update, in this order: accumulate, unscale, reduce, check, clip, apply.

        Args:
            window: this rank's micro-batches.
            divisor: of this rank's summed gradients: W, over all ranks, unless the policy says otherwise.
            next_weight: this rank's share of the next window's W, summed on the way.
            learning_rate: of this update.
            update: its number, counted from 1.
            loss_scale: what the loss is multiplied with before backward; gradients lose it again where they
                enter their bucket.
        """

    @abstractmethod
    def local_update(
        self, window: Window, divisor: float, learning_rate: float, update: int, loss_scale: float
    ) -> UpdateResult:
        """One update of this rank alone, in the same order; nothing is sent and nobody is waited for.

        Args:
            window: this rank's micro-batches, of a weight above 0.
            divisor: the window's own weight.
            learning_rate: of this update.
            update: its number among those this rank has applied, counted from 1.
            loss_scale: as in `update`.
        """

    @abstractmethod
    def find_nonfinite(self, window: Window, divisor: float, loss_scale: float) -> np.ndarray:
        """Repeat a window's forward and backward passes on this rank alone, and change nothing.

        Args:
            window: this rank's micro-batches.
            divisor: as in `update`.
            loss_scale: as in `update`.

        Returns:
            Booleans: whether the loss, and then each weight's gradient, from the model's last weight to its
            first, was not finite in any micro-batch.
        """

    @abstractmethod
    def exchange(self, policy: Policy) -> None:
        """Have a policy replace the weights by what ranks agree on; moments stay as they are.

        Args:
            policy: the spec's, or one that shares its state.
        """

    @abstractmethod
    def start_exchange(self, policy: Policy) -> None:
        """Have a policy ask the other ranks while updates of this rank alone go on; weights stay as they are.

        Args:
            policy: one that shares its state with the spec's, and changes nothing else.
        """

    @abstractmethod
    def finish_exchange(self) -> None:
        """Wait for what `start_exchange` began, and keep the policy's new state."""

    @abstractmethod
    def loss_sum(self, batch: Batch) -> float:
        """The summed loss of one batch on this rank, without dropout."""

    @abstractmethod
    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        """Element-wise sum of a float64 vector over all ranks."""

    @abstractmethod
    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """Rank 0's copy of a vector."""

    def read_weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights by Hugging Face name, in the Hugging Face layout."""
        return self._model.read()

    def load_weights(self, arrays: dict[str, np.ndarray]) -> None:
        """Set every weight from arrays by Hugging Face name, in the Hugging Face layout."""
        self._model.write(arrays)

    def read_moments(self) -> dict[str, np.ndarray]:
        """Copies of the optimizer's moments as `WEIGHT.exp_avg`, in the Hugging Face layout."""
        return self._optimizer.read()

    def load_moments(self, arrays: dict[str, np.ndarray], updates: int) -> None:
        """Set what `read_moments` read, after so many updates."""
        self._optimizer.write(arrays, updates)

    def read_compression(self) -> list[dict[str, np.ndarray]]:
        """Copies of this rank's compression state, a mapping a bucket, in the Hugging Face layout."""
        return self._reducer.read()

    def load_compression(self, states: list[dict[str, np.ndarray]]) -> None:
        """Set what `read_compression` read."""
        self._reducer.write(states)

    @property
    def wire_bytes(self) -> int:
        """Bytes of gradients and weights this rank has handed to collectives so far."""
        return self._reducer.wire_bytes
