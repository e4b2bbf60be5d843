"""Gradients of a user's loop: whole in `.grad` when the backward of a window's last micro-batch returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import horovod.torch as hvd
import torch

from hvdtrain.core.compression.protocol import State
from hvdtrain.core.dropin import Settings, accumulator, known_to_all, lay_out
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.process.preemption import told_to_stop
from hvdtrain.torch.buckets import GradBucket
from hvdtrain.torch.driver import Driver, Work
from hvdtrain.torch.dropin.accumulation import Accumulation
from hvdtrain.torch.dropin.agreement import check_shapes, compare_ranks, facts
from hvdtrain.torch.dropin.backward import BACKWARD
from hvdtrain.torch.dropin.filling import Filling
from hvdtrain.torch.dropin.hooks import Hooks
from hvdtrain.torch.dropin.session import waiting_for_ranks
from hvdtrain.torch.dropin.state import broadcast
from hvdtrain.torch.world import device


class Gradients:
    """Reduces windows that a user's own backward calls fill.

    A backward that touches any of the parameters is a micro-batch. Its gradients move to their buckets; in
    between, `.grad` shows what has added up. With the window's last, full buckets are reduced while backward
    goes on, and the rest when it ends. What `.grad` held before a window is added to it, as PyTorch does.

    Attributes:
        accumulation: the micro-batches of the window.
        driver: sums buckets over ranks.
        filling: moves gradients between `.grad` and buckets.
        hooks: on the parameters.
        index: of this optimizer among the program's.
        applied: how many updates there have been.
        prefix: of the names of collectives.
        told: how many ranks had been told to stop when the last window was reduced.
        ready: whether `.grad` holds a window that neither `step` nor `zero_grad` has ended.
        options: what ranks compare beside the parameters, such as the learning rate, by its names in errors.
    """

    def __init__(self, settings: Settings, index: int, process_set: Any = hvd.global_process_set) -> None:
        """Start without parameters.

        Args:
            settings: the wrapper's arguments.
            index: of this optimizer among the program's, the same on every rank.
            process_set: the ranks that gradients are reduced over; this one is among them.
        """
        self.index, self.prefix, self._process_set = index, f"optimizer{index}.", process_set
        self.driver = Driver(settings.rules, 0, self.prefix, process_set)
        self.accumulation = Accumulation(settings, self.driver)
        self.filling = Filling()
        self.hooks = Hooks(self._before, self._after, self.filling.check_converted)
        self.applied, self.told, self.ready, self._agreed = 0, 0, False, False
        self.options: Callable[[], Mapping[str, Any]] = dict
        # What the window is for.
        self._update, self._rules = 0, settings.rules
        # The window's, by the bucket's index, and what they make of the policies' state.
        self._works: dict[int, Work] = {}
        self._next_states: dict[int, State] = {}
        # Whether backwards were seen inside each other, which only shows in the first window. Where they were
        # not, a bucket is reduced as soon as each of its parameters has a gradient.
        self._nested = self._overlaps = False

    def add(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Take in parameters, frozen ones as well.

        Args:
            parameters: by name, in the order of the forward pass.

        Raises:
            TrainingError: one is not on the device that this rank computes on.
        """
        check_shapes(parameters)
        # Integers cannot have gradients.
        parameters = {name: p for name, p in parameters.items() if p.is_floating_point() or p.is_complex()}
        for name, parameter in parameters.items():
            if parameter.device != device():
                raise TrainingError(
                    f"parameter {name!r} is on {parameter.device}, this rank computes on {device()}: call "
                    "torch.cuda.set_device(hvd.local_rank()) and move the model before it is wrapped"
                )
        found = {p.name: p for p in facts(parameters)}
        buckets = []
        for layout in lay_out([*found.values()], self.settings, first=len(self.filling.buckets)):
            dtype = accumulator(found[layout.weights[0].name])
            self.driver.add(layout, dtype)
            buckets.append(GradBucket(layout, self.driver.ops.zeros((layout.size,), dtype)))
        self.filling.add(parameters, buckets)
        for bucket in buckets:
            for name in bucket.views:
                self.hooks.watch(name, parameters[name])
        self._agreed = False

    @property
    def settings(self) -> Settings:
        """The wrapper's arguments."""
        return self.accumulation.settings

    @property
    def closing(self) -> bool:
        """Whether this backward completes the window."""
        return self.accumulation.closing

    @property
    def over_all_ranks(self) -> bool:
        """Whether gradients are summed over all ranks, not over those of a process set."""
        return self._process_set is hvd.global_process_set

    def enter(self) -> None:
        """A backward has reached the first of the parameters."""
        self.accumulation.check()
        if not self._agreed:
            name, options = f"{self.prefix}agree", self.options()
            compare_ranks(self.filling.parameters, self.settings, name, self._process_set, options)
            self._agreed = True
        # A last backward that is followed by another without having ended has failed.
        if not self.accumulation.micro_batches or self.closing or self.filling.discarded:
            self._start_window()
        self.accumulation.add()
        if self.closing:
            for bucket in self.filling.buckets:
                bucket.pending = self._trainable(bucket)

    def nest(self) -> None:
        """From now on no bucket is complete before the outermost backward ends."""
        self._nested, self._overlaps = True, False

    def leave(self) -> None:
        """A backward that does not complete the window has ended."""
        self.filling.note_versions()

    def reduce_rest(self) -> None:
        """Start what no backward has started: buckets with a parameter that was not used."""
        for bucket in self.filling.buckets:
            if bucket.layout.index not in self._works and self._trainable(bucket):
                self._start(bucket)
        uses = [*self.filling.uses(), self.accumulation.micro_batches, told_to_stop()]
        self._counts = torch.tensor(uses, dtype=torch.int32)
        self._counts_handle = self.driver.sum_async(self._counts, "used")

    def hand_out(self) -> None:
        """Wait for every bucket, and put its sums into `.grad`."""
        with waiting_for_ranks("gradients"):
            self._next_states = self.driver.finish(self._works.values())
            hvd.synchronize(self._counts_handle)
        *uses, micro_batches, self.told = self._counts.tolist()
        self.filling.put(uses, self._works, *self.accumulation.end(micro_batches))
        self._overlaps = not self._nested
        self.ready = True

    def close(self) -> None:
        """End a window that has fewer micro-batches than it was to have."""
        BACKWARD.forget(self)
        self.accumulation.close()
        self.reduce_rest()
        self.hand_out()

    def take_hand_made(self) -> None:
        """Reduce gradients that the user has put into `.grad` without a backward, as one micro-batch."""
        if not self.filling.hand_made:
            return
        self.enter()
        for name, parameter in self.filling.parameters.items():
            if parameter.grad is not None:
                self.filling.take(name, self.accumulation.scale, closing=True)
        self.close()

    def drop(self) -> None:
        """Forget what has added up: the user has zeroed the gradients."""
        BACKWARD.forget(self)
        self.ready = False
        self.accumulation.micro_batches, self.accumulation.weight = 0, 0.0
        self.filling.note_versions()

    def commit(self) -> None:
        """Keep the policies' new state: the update was applied."""
        self._keep_states()
        self.ready, self.accumulation.weight = False, 0.0

    def catch_up(self, root_rank: int) -> None:
        """Take over from a rank what all that took part in its updates know of compression."""
        known = known_to_all(self.driver.states)
        # Policies never write to their state, and neither does this.
        found = {str(i): state[name].clone() for i, (state, name) in enumerate(known)}
        applied = torch.tensor(self.applied)
        broadcast(found | {"applied": applied}, root_rank, f"{self.prefix}catch_up")
        self.applied = int(applied)
        for (state, name), value in zip(known, found.values(), strict=True):
            state[name] = value

    def _start_window(self) -> None:
        # The last window is being added to: its sums are kept, so what they left over must be as well.
        same_update = self.ready and any(p.grad is not None for p in self.filling.parameters.values())
        if same_update:
            self._keep_states()
        else:
            self.accumulation.weight = 0.0
        self.ready = False
        # What a failed backward has left behind must not meet this window's under the same names.
        with waiting_for_ranks("gradients"):
            self.driver.finish(self._works.values())
        self._works, self._next_states = {}, {}
        self._update = self.applied + 1
        self._rules = self.settings.rules.at(self._update)
        self.accumulation.start_window()
        self.filling.start_window()
        self.hooks.forget()

    def _keep_states(self) -> None:
        self.driver.commit(self._next_states)
        self.applied += 1
        self.filling.note_versions()

    def _before(self, name: str) -> None:
        """A gradient is about to be accumulated."""
        BACKWARD.reach(self)
        if self.filling.bucket_of[name].layout.index in self._works:
            self.nest()
            raise TrainingError(
                f"parameter {name!r} has another gradient in the same backward, and its first one is on its "
                "way to the other ranks: a backward inside this one (a reentrant checkpoint, or a function "
                "whose backward runs another) shares parameters with it, and no update so far had one. Use "
                "checkpoint(..., use_reentrant=False), or have such a backward in the first update"
            )
        self.filling.make_way(name)

    def _after(self, name: str) -> None:
        """A gradient has been accumulated."""
        self.filling.take(name, self.accumulation.scale, self.closing)
        if self.closing and self._overlaps:
            bucket = self.filling.bucket_of[name]
            bucket.pending -= 1
            if self._works:
                with waiting_for_ranks("gradients"):
                    self.driver.poll(self._works.values())
            if bucket.pending == 0:
                self._start(bucket)

    def _start(self, bucket: GradBucket) -> None:
        self.filling.complete(bucket)
        scale = self.accumulation.closing_scale()
        if scale != 1.0:
            bucket.flat.mul_(scale)
        bucket.zero_unfilled()
        layout, policy = bucket.layout, self._rules.policy(bucket.layout)
        with waiting_for_ranks("gradients"):
            self._works[layout.index] = self.driver.start(policy, layout, bucket.flat, self._update)

    def _trainable(self, bucket: GradBucket) -> int:
        return sum(self.filling.parameters[name].requires_grad for name in bucket.views)
