"""Any number of ranks in one process, in lock-step: what a policy does at a scale that is not at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hvdtrain.core.compression.numpy_ops import Ops
from hvdtrain.core.compression.protocol import (
    AdasumReduce,
    AllGather,
    AllReduce,
    Policy,
    ReduceScatter,
    Reduction,
    Request,
    State,
)
from hvdtrain.core.update.buckets import Bucket


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
        return self._drive(self._policy.at(update).reduce, gradients, update)

    def scatter(self, gradients: Sequence[np.ndarray], update: int) -> list[np.ndarray]:
        """Sum one update's gradients over all ranks, and give each its shard.

        Args:
            gradients: one vector a rank, shape (bucket.size,); left as they are.
            update: its number, counted from 1.

        Returns:
            Each rank's shard.
        """
        padding = len(gradients) * self._policy.shard_size(self._bucket, len(gradients)) - self._bucket.size
        padded = [np.concatenate([flat, np.zeros(padding, flat.dtype)]) for flat in gradients]
        return self._drive(self._policy.at(update).scatter, padded, update)

    def exchange(self, policy: Policy, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Have a policy replace all ranks' weights, between two updates, and keep its new state.

        Args:
            policy: with the state of the one this simulator was made for.
            weights: one vector a rank, shape (bucket.size,); left as they are.

        Returns:
            Each rank's new weights.
        """
        found = self._drive(policy.reduce, weights, 0)
        self.commit()
        return found

    def commit(self) -> None:
        """Keep the policy's new state: the update was applied."""
        self.states = self._next_states

    def _drive(
        self, reduce: Callable[..., Reduction], arrays: Sequence[np.ndarray], update: int
    ) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            reductions = [
                reduce(ops, self._bucket, flat.copy(), state, update)
                for ops, flat, state in zip(self._ops, arrays, self.states, strict=True)
            ]
            replies: Sequence[np.ndarray | None] = [None] * len(reductions)
            while True:
                sent = zip(reductions, replies, strict=True)
                steps = [_resume(reduction, reply) for reduction, reply in sent]
                finished = [step for step in steps if isinstance(step, tuple)]
                if finished:
                    assert len(finished) == len(steps), "ranks disagree about how many collectives there are"
                    self._next_states = [state for _, state in finished]
                    return [total for total, _ in finished]
                replies = self._answer([step for step in steps if not isinstance(step, tuple)])

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
        if isinstance(requests[0], ReduceScatter):
            return [total.copy() for total in stacked.sum(axis=0)]
        if isinstance(requests[0], AdasumReduce):
            parts = np.split(stacked, np.cumsum(requests[0].sizes)[:-1], axis=1)
            combined = np.concatenate([adasum(list(part)) for part in parts])
            return [combined.copy() for _ in arrays]
        if isinstance(requests[0], AllGather):
            return [stacked.copy() for _ in arrays]
        return [stacked[:, rank].copy() for rank in range(len(arrays))]


def adasum(vectors: list[np.ndarray]) -> np.ndarray:
    """Horovod's rule: neighbours by twos, then the pairs by twos, with dot products in float64."""
    assert len(vectors) & (len(vectors) - 1) == 0, "Adasum combines a power of two of ranks"
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            _adasum_of_two(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype) for a, b in pairs
        ]
    return vectors[0]


def _adasum_of_two(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    dot, smallest = a @ b, np.sqrt(np.finfo(np.float64).tiny)
    shares = [1.0 - dot / square / 2.0 if square >= smallest else 1.0 for square in (a @ a, b @ b)]
    return shares[0] * a + shares[1] * b


def _resume(reduction: Reduction, reply: np.ndarray | None) -> Request | tuple[np.ndarray, State]:
    try:
        return reduction.send(reply)
    except StopIteration as stop:
        return stop.value
