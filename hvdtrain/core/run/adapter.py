"""What a framework computes for a run: updates, losses, and its weights and moments as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.data import Batch, Window
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.run.requests import NO_REQUESTS, Requests
from hvdtrain.core.run.results import UpdateResult


class ModelState(Protocol):
    """The weights of a model, as arrays by Hugging Face name in the Hugging Face layout.

    Attributes:
        weighs: whether only the loss function knows what a batch weighs, which `Adapter.examine` finds out.
    """

    weighs: bool

    def read(self, weights: Sequence[Weight] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Copies of all weights and buffers, or of some, with their names, one at a time and in any order.

        With `zero_stage`, every rank goes through all of them.
        """
        ...

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set those weights and buffers that are given."""
        ...


class OptimizerState(Protocol):
    """The moments of an optimizer, as arrays named `WEIGHT.exp_avg` in the Hugging Face layout."""

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """The moments with their names, one at a time: of each bucket, each moment of all its weights.

        With `zero_stage`, every rank goes through all of them.
        """
        ...

    def write(self, arrays: Iterable[tuple[str, np.ndarray]], updates: int) -> None:
        """Set what `read` yields, in its order, after so many updates; nothing is kept beyond this rank's."""
        ...

    @property
    def wire_bytes(self) -> int:
        """Bytes of weights that this rank has handed to collectives so far."""
        ...


class ReducerState(Protocol):
    """This rank's compression state, one mapping for each bucket, in the Hugging Face layout."""

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Copies of the state, a bucket's at a time."""
        ...

    def write(self, states: list[dict[str, np.ndarray]]) -> None:
        """Set what `read` yields."""
        ...

    @property
    def wire_bytes(self) -> int:
        """Bytes that this rank has handed to collectives so far."""
        ...


class GeneratorState(Protocol):
    """This rank's random generators, from which dropout is drawn."""

    def read(self) -> dict[str, np.ndarray]:
        """Copies of their states, by names that are the same in every run of a model."""
        ...

    def write(self, states: Mapping[str, np.ndarray]) -> None:
        """Set what `read` returns."""
        ...

    def seed(self, seed: int) -> None:
        """Start all of them from a seed.

        Args:
            seed: below 2^32.
        """
        ...


class Adapter(Protocol):
    """A model, its optimizer and the reduction of its gradients, in one framework on one rank.

    `Trainer` of `hvdtrain.torch.trainer` and that of `hvdtrain.tensorflow.trainer` are adapters. They know
    nothing of the loop, of files and of where the run stands: what an update needs to know is passed to it.
    """

    @property
    def model(self) -> ModelState:
        """The model."""
        ...

    @property
    def optimizer(self) -> OptimizerState:
        """The optimizer."""
        ...

    @property
    def reducer(self) -> ReducerState:
        """What sums gradients over ranks."""
        ...

    @property
    def generators(self) -> GeneratorState:
        """The random generators."""
        ...

    def update(
        self,
        window: Window,
        divisor: float,
        next_weight: float,
        learning_rate: float,
        update: int,
        loss_scale: float,
        requests: Requests = NO_REQUESTS,
    ) -> UpdateResult:
        """Take one update with all ranks, in this order: accumulate, unscale, reduce, check, clip, apply.

        Args:
            window: this rank's micro-batches.
            divisor: of this rank's summed gradients: W, over all ranks, unless the policy says otherwise.
            next_weight: this rank's share of the next window's W, which is summed over ranks on the way.
            learning_rate: of this update.
            update: its number, counted from 1.
            loss_scale: what the loss is multiplied with before backward; gradients are divided by it where
                they enter their bucket.
            requests: this rank's; those of all ranks are summed on the way.
        """
        ...

    def local_update(
        self, window: Window, divisor: float, learning_rate: float, update: int, loss_scale: float
    ) -> UpdateResult:
        """Take one update on this rank alone, in the same order; no collective is called.

        Args:
            window: this rank's micro-batches, of a weight above 0.
            divisor: the window's own weight.
            learning_rate: of this update.
            update: its number among those that this rank has applied, counted from 1.
            loss_scale: as in `update`.
        """
        ...

    def find_nonfinite(self, window: Window, divisor: float, loss_scale: float) -> np.ndarray:
        """Repeat a window's forward and backward passes, and change no weight and no gradient.

        Gradients stay this rank's own. A model that needs all ranks (`ModelSection.needs_all_ranks`) calls
        the collectives of its passes again, for then all ranks repeat their windows of the same update.
        Buffers move as in training; the core puts them back.

        Args:
            window: this rank's micro-batches.
            divisor: as in `update`.
            loss_scale: as in `update`.

        Returns:
            Booleans: whether the loss, and then each weight's gradient, from the model's last weight to its
            first, was not finite in any micro-batch.
        """
        ...

    def exchange(self, policy: Policy) -> None:
        """Have a policy replace the weights by what ranks agree on; moments stay as they are.

        Args:
            policy: the spec's, or one that shares its state.
        """
        ...

    def start_exchange(self, policy: Policy) -> None:
        """Start a policy's exchange with the other ranks while local updates go on; weights stay as they are.

        Args:
            policy: one that shares its state with the spec's, and changes nothing else.
        """
        ...

    def finish_exchange(self) -> None:
        """Wait for what `start_exchange` began, and keep the policy's new state."""
        ...

    def evaluate(self, batch: Batch) -> np.ndarray:
        """What an evaluation sums up over one batch on this rank, without dropout.

        Returns:
            The summed loss and its weight, and the sum and the weight of each metric of the task; float64.
        """
        ...

    def predict(self, batch: Batch) -> np.ndarray:
        """The logits of one batch on this rank, without dropout.

        Returns:
            (rows, classes) where each row has one prediction, else (rows · predictions, classes); of the
            weights' dtype.
        """
        ...

    def examine(self, batch: Batch) -> np.ndarray:
        """The loss of one batch, without dropout; finds out whether the loss itself says its weight.

        The metrics of the task are tried as well.

        Returns:
            The loss of each example, (rows,), where the user's function returns that; else their sum, (1,).
            float64.
        """
        ...

    def unused(self, batch: Batch) -> list[str]:
        """The names of weights that the loss of one batch does not depend on."""
        ...
