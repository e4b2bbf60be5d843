"""Any number of ranks in one process, in lock-step: what a policy does at a scale that is not at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.compression.numpy_ops import Ops
from hvdtrain.core.compression.protocol import AllGather, AllReduce, Policy, Reduction, Request, State


class Simulator:
    """Drives one policy on one bucket for all ranks, in NumPy.

    Attributes:
        states: each rank's state.
        wire_bytes: bytes each rank has handed to collectives so far.
    """

    def __init__(
        self, policy: Policy, bucket: Bucket, ranks: int, seed: int = 0, dtype: str = "float64"
    ) -> None:
        """Start with empty residuals.

        Args:
            policy: how the bucket is summed.
            bucket: its layout.
            ranks: how many.
            seed: of the policy's random numbers.
            dtype: of the gradients.
        """
        self._policy, self._bucket = policy, bucket
        self._ops = [Ops(ranks, rank, seed) for rank in range(ranks)]
        self.states: list[State] = [policy.init(ops, bucket, dtype) for ops in self._ops]
        self._next_states = self.states
        self.wire_bytes = [0] * ranks

    def reduce(self, gradients: Sequence[np.ndarray], update: int) -> list[np.ndarray]:
        """Sum one update's gradients over all ranks.

        Args:
            gradients: one vector a rank, shape (bucket.size,); left as they are.
            update: its number, counted from 1.

        Returns:
            What every rank has in the end.
        """
        policy = self._policy.at(update)
        with np.errstate(all="ignore"):
            reductions = [
                policy.reduce(ops, self._bucket, flat.copy(), state, update)
                for ops, flat, state in zip(self._ops, gradients, self.states, strict=True)
            ]
            requests = [next(reduction) for reduction in reductions]
            while True:
                replies = self._answer(requests)
                sent = zip(reductions, replies, strict=True)
                steps = [_resume(reduction, reply) for reduction, reply in sent]
                finished = [step for step in steps if isinstance(step, tuple)]
                if finished:
                    assert len(finished) == len(steps), "ranks disagree about how many collectives there are"
                    self._next_states = [state for _, state in finished]
                    return [total for total, _ in finished]
                requests = [step for step in steps if not isinstance(step, tuple)]

    def commit(self) -> None:
        """Keep the policy's new state: the update was applied."""
        self.states = self._next_states

    def _answer(self, requests: list[Request]) -> list[np.ndarray]:
        arrays = [request.array for request in requests]
        facts = {(type(request), a.shape, a.dtype) for request, a in zip(requests, arrays, strict=True)}
        assert len(facts) == 1, f"ranks ask for different collectives: {facts}"
        for rank, array in enumerate(arrays):
            self.wire_bytes[rank] += array.nbytes
        stacked = np.stack(arrays)
        if isinstance(requests[0], AllReduce):
            total = stacked.sum(axis=0)
            return [total.copy() for _ in arrays]
        if isinstance(requests[0], AllGather):
            return [stacked.copy() for _ in arrays]
        return [stacked[:, rank].copy() for rank in range(len(arrays))]


def _resume(reduction: Reduction, reply: np.ndarray) -> Request | tuple[np.ndarray, State]:
    try:
        return reduction.send(reply)
    except StopIteration as stop:
        return stop.value
