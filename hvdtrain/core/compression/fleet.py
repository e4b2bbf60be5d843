"""A thousand ranks in one process: the simulator with one array for all ranks' states."""

from __future__ import annotations

import numpy as np

from hvdtrain.core.compression.protocol import AdasumReduce, AllGather, AllReduce, Policy, Request, State
from hvdtrain.core.compression.simulator import adasum
from hvdtrain.core.compression.stacked_ops import Stacked, StackedOps
from hvdtrain.core.update.buckets import Bucket


class Fleet:
    """Drives one policy on one bucket for all ranks at once; what it does is `Simulator`'s.

    A policy's code runs once for all ranks, and what all of them have is kept and computed once: that is
    what makes a thousand ranks possible.

    Attributes:
        sent: bytes that each rank has handed to collectives so far.
        received: bytes that collectives have given each rank so far, its own share of a gather included.
    """

    def __init__(
        self, policy: Policy, bucket: Bucket, ranks: int, seed: int = 0, dtype: str = "float64"
    ) -> None:
        """Start with empty residuals; arguments as `Simulator`'s."""
        self._policy, self._bucket, self._ranks = policy, bucket, ranks
        self._ops = StackedOps(ranks, seed)
        self._state: State = policy.init(self._ops, bucket, dtype)
        self._next_state = self._state
        self.sent = self.received = 0

    @property
    def state_bytes(self) -> int:
        """Memory of the policy's state on one rank."""
        return sum(array.rows[0].nbytes for array in self._state.values())

    def reduce(self, gradients: np.ndarray, update: int) -> np.ndarray:
        """Sum one update's gradients over all ranks.

        Args:
            gradients: shape (ranks, bucket.size), or (1, bucket.size) when all have the same; left as is.
            update: its number, counted from 1.

        Returns:
            What every rank has in the end: (1, bucket.size) when it is the same, else (ranks, bucket.size).
        """
        return self._drive(self._policy.at(update), gradients, update)

    def exchange(self, policy: Policy, weights: np.ndarray) -> np.ndarray:
        """Have a policy replace all ranks' weights, between two updates, and keep its new state.

        Args:
            policy: with the state of the one this fleet was made for.
            weights: as the gradients of `reduce`.

        Returns:
            The new weights, as `reduce`.
        """
        found = self._drive(policy, weights, 0)
        self.commit()
        return found

    def commit(self) -> None:
        """Keep the policy's new state: the update was applied."""
        self._state = self._next_state

    def _drive(self, policy: Policy, arrays: np.ndarray, update: int) -> np.ndarray:
        reduction = policy.reduce(self._ops, self._bucket, Stacked(arrays.copy()), self._state, update)
        reply = None
        with np.errstate(all="ignore"):
            while True:
                try:
                    reply = self._answer(reduction.send(reply))
                except StopIteration as stop:
                    total, self._next_state = stop.value
                    return total.rows

    def _answer(self, request: Request) -> Stacked:
        # Read-only: that several ranks see the same memory must not show.
        rows = np.broadcast_to(request.array.rows, (self._ranks, *request.array.shape))
        self.sent += rows[0].nbytes
        self.received += rows[0].nbytes * (self._ranks if isinstance(request, AllGather) else 1)
        if isinstance(request, AllReduce):
            return Stacked(rows.sum(axis=0)[None])
        if isinstance(request, AdasumReduce):
            parts = np.split(rows, np.cumsum(request.sizes)[:-1], axis=1)
            return Stacked(np.concatenate([adasum(list(part)) for part in parts])[None])
        return Stacked(rows[None] if isinstance(request, AllGather) else rows.swapaxes(0, 1))
