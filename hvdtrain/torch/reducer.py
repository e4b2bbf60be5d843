"""Gradients in flat buckets, reduced while backward is still running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import horovod.torch as hvd
import numpy as np
import torch

from hvdtrain.core.compression.protocol import Array, Policy, State
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.torch.driver import Work, launch, wait
from hvdtrain.torch.ops import Ops


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
        self._process_set = hvd.global_process_set
        self._rules, self._ops, self._prefix = rules, Ops(hvd.size(), hvd.rank(), seed), prefix
        self._slots: list[_Slot] = []
        self._exchanging: list[Work] = []
        self._update, self._now = 0, rules
        self._last_backward = False
        self._wire_bytes = 0
        for bucket in buckets:
            self._add(bucket, parameters, self._ops.dtype(parameters[bucket.weights[0].name]))

    def start_window(self, update: int, loss_scale: float = 1.0) -> None:
        """Forget the last window's gradients.

        Args:
            update: number of the update that the window is for, counted from 1.
            loss_scale: a power of two that its losses are multiplied with before backward, and its gradients
                divided by where they enter their bucket.
        """
        self._loss_scale = loss_scale
        self._update, self._now = update, self._rules.at(update)
        for slot in self._slots:
            slot.unfilled = {w.name for w in slot.bucket.weights}
            slot.waiting = len(slot.bucket.weights)
            slot.work = None

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
        self._last_backward = last
        (loss * self._loss_scale if self._scaled else loss).backward()
        return loss.detach()

    def finish(self) -> list[torch.Tensor]:
        """Wait for every bucket.

        Returns:
            The flat gradients summed over ranks, one tensor a bucket.
        """
        for slot in self._slots:
            # A parameter that this batch did not use leaves its bucket waiting.
            if slot.work is None:
                self._start(slot)
        self._wait(self._works())
        return [slot.flat for slot in self._slots]

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
        slots = zip(self._slots, weights, strict=True)
        self._exchanging = [self._reduce(slot, policy, flat) for slot, flat in slots]

    def finish_exchange(self) -> None:
        """Wait for the exchange that has begun, and keep the policy's new state."""
        self._wait(self._exchanging)
        for slot, work in zip(self._slots, self._exchanging, strict=True):
            slot.state = work.next_state

    @property
    def wire_bytes(self) -> int:
        """Bytes this rank has handed to collectives so far."""
        return self._wire_bytes

    def commit(self) -> None:
        """Keep the policy's new state: the update was applied."""
        for slot in self._slots:
            if slot.work is not None:
                slot.state = slot.work.next_state

    def read(self) -> list[dict[str, np.ndarray]]:
        """Copies of this rank's policy state, a mapping a bucket, in the Hugging Face layout."""
        return [{name: a.cpu().numpy().copy() for name, a in slot.state.items()} for slot in self._slots]

    def write(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Set what `read` read."""
        for slot, arrays in zip(self._slots, states, strict=True):
            slot.state = {n: torch.from_numpy(arrays[n]).to(slot.state[n]) for n in slot.state}

    def _add(self, bucket: Bucket, parameters: Mapping[str, torch.nn.Parameter], dtype: str) -> None:
        state = self._rules.policy(bucket).init(self._ops, bucket, dtype)
        flat = self._ops.zeros((bucket.size,), dtype)
        slot = _Slot(bucket, flat, _places(bucket, flat), state)
        self._slots.append(slot)
        for name, place in slot.places.items():
            self._watch(slot, name, place, parameters[name])

    def _renew(self, slot: _Slot) -> None:
        """Give a bucket new memory: somebody else keeps the old."""
        slot.flat = torch.empty_like(slot.flat)
        slot.places = _places(slot.bucket, slot.flat)

    def _watch(self, slot: _Slot, name: str, place: torch.Tensor, parameter: torch.nn.Parameter) -> None:
        def ready(parameter: torch.Tensor) -> None:
            # Moved here: autograd adding into a `.grad` that is a view reads and writes the bucket once more.
            # Unscaled in the same pass. An embedding's gradient may be sparse.
            gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            if name not in slot.unfilled:
                place.add_(gradient, alpha=1.0 / self._loss_scale)
            elif self._scaled:
                torch.mul(gradient, 1.0 / self._loss_scale, out=place)
            else:
                place.copy_(gradient)
            slot.unfilled.discard(name)
            parameter.grad = None
            self._arrived(slot)

        parameter.register_post_accumulate_grad_hook(ready)

    def _arrived(self, slot: _Slot) -> None:
        if self._last_backward:
            slot.waiting -= 1
            # With every gradient, not every bucket: the other ranks wait for what comes next of a policy.
            self._resume_answered(self._works())
            if slot.waiting == 0:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        for name in slot.unfilled:
            slot.places[name].zero_()
        slot.work = self._reduce(slot, self._now.policy(slot.bucket), slot.flat)

    def _reduce(self, slot: _Slot, policy: Policy, flat: torch.Tensor) -> Work:
        reduction = policy.reduce(self._ops, slot.bucket, flat, slot.state, self._update)
        work = Work(slot.bucket.index, flat, reduction)
        self._resume(work, None)
        return work

    def _works(self) -> list[Work]:
        return [slot.work for slot in self._slots if slot.work is not None]

    def _wait(self, works: Sequence[Work]) -> None:
        for work in works:
            while work.request is not None:
                self._resume(work, self._reply(work))
                self._resume_answered(works)

    def _resume_answered(self, works: Sequence[Work]) -> None:
        for work in works:
            if work.request is not None and hvd.poll(work.handle):
                self._resume(work, self._reply(work))

    def _resume(self, work: Work, reply: Array) -> None:
        try:
            work.request = work.reduction.send(reply)
        except StopIteration as stop:
            total, work.next_state = stop.value
            work.request = None
            # A policy may have summed into the bucket through a view of it.
            if total.data_ptr() != work.flat.data_ptr():
                work.flat.copy_(total)
            return
        # Ranks may launch in different orders: Horovod pairs collectives by name.
        name = f"{self._prefix}{type(work.request).__name__}.bucket{work.bucket}.{work.requests}"
        work.requests += 1
        self._wire_bytes += work.request.array.nbytes
        work.handle = launch(work.request, name, self._process_set)

    def _reply(self, work: Work) -> torch.Tensor:
        assert work.request is not None
        return wait(work.request, work.handle, self._process_set)


@dataclass
class _Slot:
    bucket: Bucket
    flat: torch.Tensor
    # Where each weight's gradient lies in `flat`.
    places: dict[str, torch.Tensor]
    state: State
    unfilled: set[str] = field(default_factory=set)
    waiting: int = 0
    work: Work | None = None


def _places(bucket: Bucket, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = zip(bucket.weights, flat.split(bucket.sizes), strict=True)
    return {weight.name: part.view(weight.shape) for weight, part in parts}
