"""Drives compression policies: their requests are Horovod's collectives, under way while backward goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from hvdtrain.core.compression.protocol import (
    AdasumReduce,
    AllGather,
    AllReduce,
    Array,
    Policy,
    ReduceScatter,
    Reduction,
    Request,
    State,
)
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.torch.ops import Ops
from hvdtrain.torch.weights import host_copy
from hvdtrain.torch.world import reduces_over_gloo


@dataclass
class Work:
    """A policy's generator on its way.

    Attributes:
        bucket: its index.
        flat: this rank's gradients.
        total: the sum over ranks, when it is done: in `flat`, or a shard of it.
        reduction: the generator.
        next_state: the policy's state when it is done.
        requests: how many it has made.
        request: the one that is under way; None when it is done.
        handle: Horovod's, of that request.
    """

    bucket: int
    flat: torch.Tensor
    total: torch.Tensor
    reduction: Reduction
    next_state: State = field(default_factory=dict)
    requests: int = 0
    request: Request | None = None
    handle: int = -1


class Driver:
    """Sums buckets over ranks, and keeps the state of their policies.

    Attributes:
        ops: the array verbs, which know this rank's place.
    """

    def __init__(
        self, rules: Rules, seed: int, prefix: str = "", process_set: Any = hvd.global_process_set
    ) -> None:
        """Start without buckets.

        Args:
            rules: whose policies have their first state here.
            seed: of the policies' random numbers.
            prefix: in front of the names of collectives; different for those that may be under way together.
            process_set: the ranks that take part.
        """
        self.ops = Ops(process_set.size(), process_set.rank(), seed)
        self._rules, self._prefix, self._process_set = rules, prefix, process_set
        self._buckets: list[Bucket] = []
        self._states: list[State] = []
        self._wire_bytes = 0
        # Gloo's reducescatter takes as long as three or four of its allreduces.
        self._by_alltoall = reduces_over_gloo()

    def add(self, bucket: Bucket, dtype: str) -> None:
        """Take in a bucket, whose index is the number of those before it.

        Args:
            bucket: its layout.
            dtype: of its gradients.
        """
        self._buckets.append(bucket)
        self._states.append(self._rules.policy(bucket).init(self.ops, bucket, dtype))

    def start(self, policy: Policy, bucket: Bucket, flat: torch.Tensor, update: int) -> Work:
        """Begin to sum one bucket.

        Args:
            policy: how.
            bucket: its layout.
            flat: this rank's gradients, (bucket.size,), and in the end their sum over ranks.
            update: number of the update, counted from 1.
        """
        reduction = policy.reduce(self.ops, bucket, flat, self._states[bucket.index], update)
        return self._begin(Work(bucket.index, flat, flat, reduction))

    def start_shard(self, policy: Policy, bucket: Bucket, flat: torch.Tensor, update: int) -> Work:
        """Begin to sum one bucket, of which this rank is given its shard.

        Args:
            policy: how.
            bucket: its layout.
            flat: this rank's gradients, (ranks * shard,), zeros beyond the bucket's size; overwritten.
            update: number of the update, counted from 1.
        """
        reduction = policy.scatter(self.ops, bucket, flat, self._states[bucket.index], update)
        shard = flat[: policy.shard_size(bucket, self.ops.ranks)]
        return self._begin(Work(bucket.index, flat, shard, reduction))

    def poll(self, works: Iterable[Work]) -> None:
        """Go on with those whose request has been answered: the other ranks wait for what comes next."""
        for work in works:
            if work.request is not None and hvd.poll(work.handle):
                self._resume(work, self._reply(work))

    def finish(self, works: Iterable[Work]) -> dict[int, State]:
        """Wait until all are done.

        Returns:
            Their policies' new states, by the bucket's index.
        """
        # Every rank waits for the same bucket: none for what another starts only after what it waits for.
        found = sorted(works, key=lambda work: work.bucket)
        for work in found:
            while work.request is not None:
                self._resume(work, self._reply(work))
                self.poll(found)
        return {work.bucket: work.next_state for work in found}

    def commit(self, states: Mapping[int, State]) -> None:
        """Keep new states: the update was applied.

        Args:
            states: by the bucket's index.
        """
        for index, state in states.items():
            self._states[index] = state

    @property
    def states(self) -> list[tuple[Policy, State]]:
        """Each bucket's policy and its state, arrays by name."""
        return [*zip(map(self._rules.policy, self._buckets), self._states, strict=True)]

    @property
    def wire_bytes(self) -> int:
        """Bytes this rank has handed to collectives so far."""
        return self._wire_bytes

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Copies of this rank's policy state, a mapping a bucket, in the Hugging Face layout."""
        for state in self._states:
            yield {name: host_copy(array).numpy() for name, array in state.items()}

    def write(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Set what `read` read."""
        self._states = [
            {name: torch.from_numpy(arrays[name]).to(before) for name, before in state.items()}
            for state, arrays in zip(self._states, states, strict=True)
        ]

    def sum_async(self, values: torch.Tensor, name: str) -> int:
        """Begin to sum a few values over ranks, beside the buckets.

        Args:
            values: this rank's, and in the end their sum.
            name: of the collective, behind the prefix.

        Returns:
            Horovod's handle.
        """
        name = f"{self._prefix}{name}"
        return hvd.allreduce_async_(values, op=hvd.Sum, name=name, process_set=self._process_set)

    def _begin(self, work: Work) -> Work:
        self._resume(work, None)
        return work

    def _resume(self, work: Work, reply: Array) -> None:
        try:
            work.request = work.reduction.send(reply)
        except StopIteration as stop:
            total, work.next_state = stop.value
            work.request = None
            # A policy may have summed into the bucket through a view of it.
            if total.data_ptr() != work.total.data_ptr():
                work.total.copy_(total)
            return
        # Ranks may launch in different orders: Horovod pairs collectives by name.
        name = f"{self._prefix}{type(work.request).__name__}.bucket{work.bucket}.{work.requests}"
        work.requests += 1
        self._wire_bytes += work.request.array.nbytes
        work.handle = self._launch(work.request, name)

    def _launch(self, request: Request, name: str) -> int:
        """Hand a request to Horovod, which sends it from a thread of its own."""
        array = request.array.contiguous()
        if isinstance(request, AllReduce):
            return hvd.allreduce_async_(array, op=hvd.Sum, name=name, process_set=self._process_set)
        if isinstance(request, AdasumReduce):
            # Horovod takes the dot products of each tensor of a group by itself.
            parts = [part for part in array.split(request.sizes) if len(part)]
            return hvd.grouped_allreduce_async_(parts, op=hvd.Adasum, name=name)
        if isinstance(request, ReduceScatter) and not self._by_alltoall:
            return hvd.reducescatter_async(array, op=hvd.Sum, name=name, process_set=self._process_set)
        ask = hvd.allgather_async if isinstance(request, AllGather) else hvd.alltoall_async
        return ask(array, name=name, process_set=self._process_set)

    def _reply(self, work: Work) -> torch.Tensor:
        """The answer to a request, as the protocol says it."""
        reply = hvd.synchronize(work.handle)
        if isinstance(work.request, AllReduce):
            return reply
        if isinstance(work.request, AllGather):
            return reply.view(self.ops.ranks, -1)
        if isinstance(work.request, AdasumReduce):
            return torch.cat(reply)
        if isinstance(work.request, ReduceScatter) and not self._by_alltoall:
            return reply.view(-1)
        received, _ = reply
        return received.sum(dim=0) if isinstance(work.request, ReduceScatter) else received
