"""Gradients in flat buckets, reduced while backward is still running."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from hvdtrain.core.compression.protocol import Policy, State
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.shards import UNDER_WAY
from hvdtrain.torch.buckets import GradBucket
from hvdtrain.torch.driver import Driver, Work


class Reducer:
    """Owns the gradients: each moves into its bucket when backward has it, and a full bucket is reduced.

    Reductions start from hooks of the window's last backward only; before it gradients add up in the bucket.
    """

    def __init__(
        self,
        rules: Rules,
        buckets: Sequence[Bucket],
        parameters: Mapping[str, torch.nn.Parameter],
        seed: int,
        scaled: bool = False,
        prefix: str = "",
    ) -> None:
        """Lay out the buckets.

        Args:
            rules: how each bucket is summed over ranks.
            buckets: the plan's layout.
            parameters: by weight name; shapes as in the layout.
            seed: of the policy's random numbers.
            scaled: whether windows have a loss scale.
            prefix: of the names of collectives: two reducers of one program need different ones.
        """
        self._scaled, self._loss_scale = scaled, 1.0
        self._rules, self._now, self._update = rules, rules, 0
        self._driver = Driver(rules, seed, prefix)
        self._buckets: list[GradBucket] = []
        # The window's, by the bucket's index, and what they make of the policies' state.
        self._works: dict[int, Work] = {}
        self._next_states: dict[int, State] = {}
        self._exchanging: list[Work] = []
        self._reduces = False
        # With sharded gradients: the window's sums of this rank's shards, by the bucket's index, and whether
        # there is a micro-batch that is not in them yet.
        self._shards: dict[int, torch.Tensor] = {}
        self._uncollected = False
        # A user's model gathers nothing on a rank without samples, which then cannot sum at the same point.
        out_of_step = rules.shards_weights and any(w.custom for bucket in buckets for w in bucket.weights)
        self._waits = rules.shards_gradients and not out_of_step
        for bucket in buckets:
            self._add(bucket, parameters)

    def start_window(self, update: int, loss_scale: float = 1.0) -> None:
        """Forget the last window's gradients.

        Args:
            update: number of the update that the window is for, counted from 1.
            loss_scale: a power of two that its losses are multiplied with before backward, and its gradients
                divided by where they enter their bucket.
        """
        self._loss_scale = loss_scale
        self._update, self._now = update, self._rules.at(update)
        self._works, self._next_states = {}, {}
        self._shards, self._uncollected = {}, False
        for bucket in self._buckets:
            bucket.start_window()

    def backward(self, forward: Callable[[], torch.Tensor], last: bool) -> torch.Tensor:
        """Run one micro-batch and add its gradients to the window's.

        Args:
            forward: computes the summed loss, already divided by W.
            last: whether it is the window's last; then a bucket's reduction starts as soon as backward has
                finished its gradients.

        Returns:
            The loss, detached, without the loss scale.
        """
        loss = forward()
        self._reduces = last or self._rules.shards_gradients
        if self._uncollected:
            self._collect()
            for bucket in self._buckets:
                bucket.start_window()
        # Also one without any gradient: the other ranks sum theirs.
        self._uncollected = self._rules.shards_gradients
        (loss * self._loss_scale if self._scaled else loss).backward()
        return loss.detach()

    def finish(self) -> list[torch.Tensor]:
        """Wait for every bucket.

        Returns:
            The flat gradients summed over ranks, one tensor a bucket: all of it, or this rank's shard.
        """
        if self._rules.shards_gradients:
            self._collect()
            return [self._shards[bucket.layout.index] for bucket in self._buckets]
        self._start_waiting()
        self._next_states = self._driver.finish(self._works.values())
        return [self._works[bucket.layout.index].total for bucket in self._buckets]

    def exchange(self, policy: Policy, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Have a policy replace the weights, between two windows, and keep its new state.

        Args:
            policy: with the state of the one this reducer was made for.
            weights: flat, one tensor a bucket; overwritten.

        Returns:
            The new weights, flat, one tensor a bucket.
        """
        self.start_exchange(policy, weights)
        self.finish_exchange()
        return list(weights)

    def start_exchange(self, policy: Policy, weights: Sequence[torch.Tensor]) -> None:
        """Begin an exchange during which there may be windows whose policies leave its state alone.

        Args:
            policy: as in `exchange`.
            weights: as in `exchange`, unless the policy gives them back as they are.
        """
        self._exchanging = [
            self._driver.start(policy, bucket.layout, flat, self._update)
            for bucket, flat in zip(self._buckets, weights, strict=True)
        ]

    def finish_exchange(self) -> None:
        """Wait for the exchange that has begun, and keep the policy's new state."""
        self._driver.commit(self._driver.finish(self._exchanging))

    @property
    def wire_bytes(self) -> int:
        """Bytes this rank has handed to collectives so far."""
        return self._driver.wire_bytes

    def commit(self) -> None:
        """Keep the policy's new state: the update was applied."""
        self._driver.commit(self._next_states)

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Copies of this rank's policy state, a mapping a bucket, in the Hugging Face layout."""
        return self._driver.read()

    def write(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Set what `read` read."""
        self._driver.write(states)

    def _start_waiting(self) -> None:
        """Start buckets that wait for the gradient of a parameter that this batch did not use."""
        for bucket in self._buckets:
            if bucket.layout.index not in self._works:
                self._start(bucket)

    def _collect(self) -> None:
        """Wait for all sums of a micro-batch, which then are in the shards alone."""
        self._start_waiting()
        self._driver.finish(self._works.values())
        self._absorb()
        self._works = {}

    def _wait(self) -> None:
        """Let the other ranks catch up where too many buckets are under way.

        Every rank waits for buckets in the same order, and for none that it has not started: another rank may
        have to start it first.
        """
        under_way = sum(work.request is not None for work in self._works.values())
        for bucket in self._buckets:
            work = self._works.get(bucket.layout.index)
            if work is None or under_way <= UNDER_WAY:
                break
            if work.request is not None:
                self._driver.finish([work])
                under_way -= 1
        self._absorb()

    def _absorb(self) -> None:
        """Add finished sums to the shards, and give the memory of their buckets back."""
        for index, work in self._works.items():
            bucket = self._buckets[index]
            if work.request is None and bucket.flat.untyped_storage().nbytes():
                if index in self._shards:
                    self._shards[index] += work.total
                else:
                    self._shards[index] = work.total.clone()
                bucket.release()

    def _add(self, layout: Bucket, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        ops = self._driver.ops
        dtype = ops.dtype(parameters[layout.weights[0].name])
        shard = self._rules.shard(layout, ops.ranks, ops.rank)
        bucket = GradBucket(layout, ops.zeros((shard.padded,), dtype))
        if self._rules.shards_gradients:
            bucket.release()
        self._driver.add(layout, dtype)
        self._buckets.append(bucket)
        for weight in layout.weights:
            self._watch(bucket, weight.name, parameters[weight.name])

    def _watch(self, bucket: GradBucket, name: str, parameter: torch.nn.Parameter) -> None:
        def ready(parameter: torch.Tensor) -> None:
            # Moved here: autograd adding into a `.grad` that is a view reads and writes the bucket once more.
            # An embedding's gradient may be sparse.
            gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            bucket.fill(name, gradient, 1.0 / self._loss_scale)
            parameter.grad = None
            if self._reduces:
                bucket.pending -= 1
                # With every gradient, not every bucket: the other ranks wait for what comes next of a policy.
                self._driver.poll(self._works.values())
                if self._rules.shards_gradients:
                    self._absorb()
                if bucket.pending == 0:
                    self._start(bucket)
                    if self._waits:
                        self._wait()

        parameter.register_post_accumulate_grad_hook(ready)

    def _start(self, bucket: GradBucket) -> None:
        bucket.zero_unfilled()
        layout = bucket.layout
        policy = self._now.policy(layout)
        start = self._driver.start_shard if self._rules.sharded else self._driver.start
        work = start(policy, layout, bucket.flat, self._update)
        self._works[layout.index] = work
