"""Gradients of a user's loop: whole in `.grad` when the backward of a window's last micro-batch returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import horovod.torch as hvd
import torch

from hvdtrain.core.dropin import Settings, accumulator, keeps_residuals, lay_out
from hvdtrain.core.errors import TrainingError
from hvdtrain.torch.dropin.agreement import check_shapes, compare_ranks, facts
from hvdtrain.torch.dropin.backward import BACKWARD
from hvdtrain.torch.dropin.filling import Filling
from hvdtrain.torch.dropin.session import waiting_for_ranks
from hvdtrain.torch.dropin.state import broadcast
from hvdtrain.torch.world import device


class Gradients(Filling):
    """Reduces windows that a user's own backward calls fill.

    A backward that touches any of the parameters is a micro-batch. Its gradients move to their buckets; in
    between, `.grad` shows what has added up. With the window's last, full buckets are reduced while backward
    goes on, and the rest when it ends. What `.grad` held before a window is added to it, as PyTorch does.

    Attributes:
        ready: whether `.grad` holds a window that neither `step` nor `zero_grad` has ended.
        samples: of the next micro-batch, when `average` is by them.
        options: what ranks compare beside the parameters, such as the learning rate, by its names in errors.
    """

    def __init__(self, settings: Settings, index: int, process_set: Any = hvd.global_process_set) -> None:
        """Start without parameters.

        Args:
            settings: the wrapper's arguments.
            index: of this optimizer among the program's, the same on every rank.
            process_set: the ranks that gradients are reduced over; this one is among them.
        """
        super().__init__(settings.rules, f"optimizer{index}.", process_set)
        self.settings, self.index = settings, index
        self.ready = False
        self.samples: float | None = None
        self.options: Callable[[], Mapping[str, Any]] = dict
        self._agreed = False
        self._applied = 0
        self._micro_batches = 0
        self._own_samples = 0.0
        self._divisor_handle: int | None = None
        self._closing_scale: float | None = None
        # What windows of this update that have been reduced already count for.
        self._weight = 0.0
        self._total_samples = 0.0
        self._nested = False

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
        self._parameters |= parameters
        self._agreed = False
        for name, parameter in parameters.items():
            if parameter.device != device():
                raise TrainingError(
                    f"parameter {name!r} is on {parameter.device}, this rank computes on {device()}: call "
                    "torch.cuda.set_device(hvd.local_rank()) and move the model before it is wrapped"
                )
        found = {p.name: p for p in facts(parameters)}
        for bucket in lay_out([*found.values()], self.settings, first=len(self._slots)):
            self._add(bucket, parameters, accumulator(found[bucket.weights[0].name]))

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All that were taken in."""
        return [*self._parameters.values()]

    def drop(self) -> None:
        """Forget what has added up: the user has zeroed the gradients."""
        BACKWARD.forget(self)
        self.ready = False
        self._micro_batches, self._weight = 0, 0.0
        self._shown.note_versions(self._slots)

    def enter(self) -> None:
        """A backward has reached the first of the parameters."""
        if self.settings.by_samples and self.samples is None:
            raise TrainingError(
                "average='samples': set optimizer.batch_samples to the number of samples of this micro-batch "
                "before each backward()"
            )
        if not self._agreed:
            name, options = f"{self._prefix}agree", self.options()
            compare_ranks(self._parameters, self.settings, name, self._process_set, options)
            self._agreed = True
        # A last backward that is followed by another without having ended has failed.
        if self._micro_batches == 0 or self._last_backward or self._discarded():
            self._open()
        self._micro_batches += 1
        self._scale = self.settings.scale(self._ops.ranks, self.samples)
        self._own_samples += self.samples or 0.0
        self.samples = None
        self._last_backward = self._micro_batches == self.settings.gradient_accumulation_steps
        if self._last_backward:
            for slot in self._slots:
                slot.waiting = sum(self._parameters[w.name].requires_grad for w in slot.bucket.weights)
            self._ask_for_divisor()

    def nest(self) -> None:
        """From now on no bucket is complete before the outermost backward ends."""
        self._nested, self._overlaps = True, False

    def leave(self) -> None:
        """A backward that does not complete the window has ended."""
        self._shown.note_versions(self._slots)

    @property
    def may_fall_behind(self) -> bool:
        """Whether compression has state that ranks change alike with each update."""
        return bool(self._known_to_all())

    @property
    def applied(self) -> int:
        """How many updates there have been."""
        return self._applied

    def catch_up(self, root_rank: int) -> None:
        """Take over from a rank what all that took part in its updates know of compression."""
        found = {"applied": torch.tensor(self._applied)} | self._known_to_all()
        broadcast(found, root_rank, f"{self._prefix}catch_up")
        self._applied = int(found.pop("applied"))
        for key, value in found.items():
            index, name = key.split(".", 1)
            self._slots[int(index)].state[name] = value

    def _known_to_all(self) -> dict[str, torch.Tensor]:
        return {
            f"{slot.bucket.index}.{name}": array.clone()
            for slot in self._slots
            for name, array in slot.state.items()
            if name not in self._rules.policy(slot.bucket).residuals
        }

    @property
    def open(self) -> bool:
        """Whether there are micro-batches that have not been reduced."""
        return self._micro_batches > 0

    @property
    def closing(self) -> bool:
        """Whether the window ends with the backward now running."""
        return self._last_backward

    def close(self) -> None:
        """End a window that has fewer micro-batches than it was to have."""
        BACKWARD.forget(self)
        self._ask_for_divisor()
        self.reduce_rest()
        self.hand_out()

    def take_hand_made(self) -> bool:
        """Reduce gradients that the user has put into `.grad` without a backward, as one micro-batch.

        Returns:
            Whether there were any.
        """
        every = [(slot, name, self._parameters[name]) for slot in self._slots for name in slot.places]
        if all(p.grad is None or self._shown.is_untouched(slot, n, p.grad) for slot, n, p in every):
            return False
        self.enter()
        for slot, name, parameter in every:
            if parameter.grad is not None:
                self._take(slot, name, parameter.grad.detach())
                self._hidden.add(name)
                parameter.grad = None
        self.close()
        return True

    def reduce_rest(self) -> None:
        """Start what no backward has started: buckets with a parameter that was not used."""
        for slot in self._slots:
            if slot.work is None and any(self._parameters[w.name].requires_grad for w in slot.bucket.weights):
                self._start(slot)
        self._counts = torch.tensor([*self._uses(), self._micro_batches], dtype=torch.int32)
        self._counts_handle = self._sum_async(self._counts, "used")

    def hand_out(self) -> None:
        """Wait for every bucket, and put its sums into `.grad`."""
        self._wait(self._works())
        with waiting_for_ranks("gradients"):
            hvd.synchronize(self._counts_handle)
        *uses, micro_batches = self._counts.tolist()
        if self.settings.by_samples:
            self._final_scale()
        weight = self._total_samples if self.settings.by_samples else micro_batches
        self._put(uses, *self.settings.shares(self._weight, weight))
        self._weight += weight
        self._micro_batches = 0
        self._last_backward = False
        # In the first one it shows whether backwards are inside each other.
        self._overlaps = not self._nested
        self.ready = True

    def commit(self) -> None:
        """Keep the policies' new state: the update was applied."""
        super().commit()
        self._applied += 1
        self._shown.note_versions(self._slots)
        self.ready, self._weight = False, 0.0

    def mean(self, loss: torch.Tensor) -> torch.Tensor:
        """A loss of the last window as one process would have it, by the wrapper's `average`."""
        own = torch.tensor([1.0, 1.0], dtype=torch.float64)
        if self.settings.by_samples:
            own *= self._own_samples
        own[0] *= loss.detach().double().cpu()
        with waiting_for_ranks("loss"):
            total = hvd.synchronize(self._sum_async(own, "loss"))
        mean = total[0] if self.settings.average == "sum" else total[0] / total[1]
        return mean.to(loss)

    @property
    def keeps_residuals(self) -> bool:
        """Whether any policy adds to an update what it did not send of the last one."""
        return keeps_residuals((self._rules.policy(slot.bucket), slot.state) for slot in self._slots)

    def _open(self) -> None:
        # The last window is being added to: its sums are kept, so what they left over must be as well.
        weight = 0.0
        if self.ready and any(p.grad is not None for p in self._parameters.values()):
            weight = self._weight
            self.commit()
        self.ready, self._weight = False, weight
        # What a failed backward has left behind must not meet this window's under the same names.
        self._wait(self._works())
        if self._divisor_handle is not None and self._closing_scale is None:
            hvd.synchronize(self._divisor_handle)
        self._micro_batches = 0
        self.start_window(self._applied + 1)
        for slot in self._slots:
            if self._shown.is_held(slot, self._parameters):
                self._renew(slot)
                self._shown.add(slot)
        self._forget()
        self._own_samples, self._divisor_handle = 0.0, None

    def _ask_for_divisor(self) -> None:
        if self.settings.by_samples and self._divisor_handle is None:
            self._samples = torch.tensor([self._own_samples], dtype=torch.float64)
            self._divisor_handle = self._sum_async(self._samples, "samples")
            self._closing_scale = None
        elif not self.settings.by_samples:
            self._closing_scale = self.settings.closing_scale(self._micro_batches)

    def _sum_async(self, values: torch.Tensor, name: str) -> int:
        """Start to sum values over ranks, in place."""
        name = f"{self._prefix}{name}"
        return hvd.allreduce_async_(values, op=hvd.Sum, name=name, process_set=self._process_set)

    def _reached(self) -> None:
        BACKWARD.reach(self)

    def _final_scale(self) -> float:
        if self._closing_scale is None:
            with waiting_for_ranks("the number of samples of this update"):
                total = float(hvd.synchronize(self._divisor_handle))
            self._total_samples = total
            self._closing_scale = self.settings.closing_scale(self._micro_batches, self._own_samples, total)
        return self._closing_scale
