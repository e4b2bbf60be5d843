"""What each update is made of: how many samples, and in how many micro-batches every rank takes its share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.sections import BatchSpec


@dataclass(frozen=True)
class BatchSizes:
    """How a global batch is cut: global = ranks x per_device x accumulation."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    global_batch_size: int


@dataclass(frozen=True)
class Accumulation:
    """How many of the samples that come next an update takes; the same on every rank, and known beforehand.

    Attributes:
        size: ranks.
        per_device: rows of a micro-batch.
        stages: (from_step, steps): an update after `from_step` others has `steps` micro-batches on each rank;
            ascending, from 0.
        target_tokens: instead of stages, an update takes the fewest samples that together have so many.
    """

    size: int
    per_device: int
    stages: tuple[tuple[int, int], ...] = ((0, 1),)
    target_tokens: int | None = None

    def samples(self, update: int, tokens: NDArray[np.int64]) -> int:
        """How many samples an update takes.

        Args:
            update: its number, counted from 1; skipped ones count.
            tokens: of each sample that is left in this epoch, in order; at least one.

        Returns:
            At least 1, at most `len(tokens)`: no update crosses the end of an epoch.
        """
        if self.target_tokens is None:
            return min(self.size * self.per_device * self._steps(update), len(tokens))
        # Every sample has a token: more of them are not needed.
        reached = int(np.searchsorted(np.cumsum(tokens[: self.target_tokens]), self.target_tokens))
        return min(reached + 1, len(tokens))

    def reached(self, updates: int) -> tuple[tuple[int, int], ...]:
        """The stages that a run of so many updates comes to."""
        return tuple(stage for stage in self.stages if stage[0] < updates)

    def micro_batches(self, update: int, samples: int) -> int:
        """How many micro-batches every rank has in an update of so many samples."""
        if self.target_tokens is None:
            return self._steps(update)
        return math.ceil(math.ceil(samples / self.size) / self.per_device)

    def _steps(self, update: int) -> int:
        return next(steps for from_step, steps in reversed(self.stages) if from_step < update)


def resolve_accumulation(batch: BatchSpec, size: int) -> Accumulation:
    """What each update is made of on so many ranks; errors as `resolve_batch`."""
    stages, per_device = batch.gradient_accumulation_steps, batch.per_device_train_batch_size
    if isinstance(stages, tuple):
        assert per_device is not None  # BatchSpec's validator
        return Accumulation(size, per_device, tuple((s.from_step, s.steps) for s in stages))
    if batch.target_tokens_per_update is not None:
        assert per_device is not None
        return Accumulation(size, per_device, target_tokens=batch.target_tokens_per_update)
    found = resolve_batch(batch, size)
    steps = ((0, found.gradient_accumulation_steps),)
    return Accumulation(size, found.per_device_train_batch_size, steps)


def resolve_batch(batch: BatchSpec, size: int) -> BatchSizes:
    """Compute the third of the batch's numbers from the other two and the number of ranks.

    Args:
        batch: without stages and without a number of tokens.
        size: ranks.

    Raises:
        SpecError: when they do not divide or contradict each other.
    """
    per_device, accumulation = batch.per_device_train_batch_size, batch.gradient_accumulation_steps
    total = batch.global_batch_size
    assert not isinstance(accumulation, tuple)
    if total is None:
        accumulation = accumulation or 1
        assert per_device is not None  # BatchSpec's validator: one of two is given
        return BatchSizes(per_device, accumulation, size * per_device * accumulation)
    if per_device is None:
        per_device = _divide(total, size, accumulation or 1, "gradient_accumulation_steps")
    elif accumulation is None:
        accumulation = _divide(total, size, per_device, "per_device_train_batch_size")
    assert accumulation is not None
    if per_device * accumulation * size != total:
        raise SpecError(
            f"batch: {size} ranks x per_device_train_batch_size {per_device} x gradient_accumulation_steps "
            f"{accumulation} = {size * per_device * accumulation}, but global_batch_size is {total}: "
            "leave one out, or set it to null"
        )
    return BatchSizes(per_device, accumulation, total)


def batch_of(accumulation: Accumulation, tokens_per_sample: float, updates: int = 1) -> BatchSizes:
    """How a global batch is cut: where that changes, in the run's last update, or as is to be expected.

    Args:
        accumulation: what each update is made of.
        tokens_per_sample: their mean.
        updates: of the run.
    """
    size, per_device = accumulation.size, accumulation.per_device
    if accumulation.target_tokens is None:
        steps = accumulation.reached(updates)[-1][1]
        return BatchSizes(per_device, steps, size * per_device * steps)
    samples = math.ceil(accumulation.target_tokens / tokens_per_sample)
    return BatchSizes(per_device, accumulation.micro_batches(1, samples), samples)


def _divide(total: int, size: int, given: int, name: str) -> int:
    if total % (size * given):
        raise SpecError(
            f"batch.global_batch_size: {total} is not a multiple of "
            f"{size} ranks x {name} {given} = {size * given}"
        )
    return total // (size * given)
