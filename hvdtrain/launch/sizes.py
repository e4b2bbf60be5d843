"""On how many ranks an elastic job may run: its updates are the same on any of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from hvdtrain.core.errors import LaunchError, SpecError
from hvdtrain.core.plan.plan import peak_learning_rate
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.accumulation import resolve_accumulation


@dataclass(frozen=True)
class Sizes:
    """The numbers of ranks on which a job has the same global batches and the same learning rate.

    Attributes:
        spec: of the job.
        least: ranks without which it does not go on.
        most: ranks that it takes at most; None: as many as there are slots.
        start: ranks at the start; None: as many as there are then.
    """

    spec: JobSpec
    least: int
    most: int | None = None
    start: int | None = None

    def check(self) -> None:
        """Refuse limits between which the job cannot run, or that contradict each other.

        Raises:
            LaunchError: naming the nearest numbers of ranks that will do.
        """
        if self.least < 1:
            raise LaunchError(f"--min-np {self.least}: at least one rank is needed")
        if self.most is not None and self.most < self.least:
            raise LaunchError(f"--min-np {self.least} exceeds --max-np {self.most}")
        if self.start is not None:
            if not self.least <= self.start <= (self.most or self.start):
                raise LaunchError(f"-np {self.start}: is not between --min-np and --max-np")
            if why := self.obstacle(self.start):
                raise LaunchError(f"-np {self.start}: {why}; {self._nearest(self.start)}")
        if next(self._between(self.least, self._end), None) is None:
            why = self.obstacle(self.least)
            end = "" if self.most is None else f" --max-np {self.most}"
            raise LaunchError(
                f"--min-np {self.least}{end}: none of these numbers of ranks will do: {why}; "
                f"{self._nearest(self.least)}"
            )

    def largest(self, slots: int) -> int | None:
        """The most ranks that the job can use on so many slots; None where it has to wait for more."""
        end = min(slots, self._end)
        return next((n for n in range(end, self.least - 1, -1) if self.obstacle(n) is None), None)

    def skipped(self, slots: int) -> str | None:
        """Why fewer ranks are used than there are slots, if that is so."""
        most, used = min(slots, self.most or slots), self.largest(slots)
        if used is None or used == most:
            return None
        return f"{most - used} of {most} slots stay idle: {self.obstacle(most)}"

    def obstacle(self, ranks: int) -> str | None:
        """Why the job cannot run on so many ranks, with the updates that it has on others; None if it can."""
        try:
            self.spec.rules.check_ranks(ranks)
            found = resolve_accumulation(self.spec.batch, ranks)
        except SpecError as error:
            return str(error)
        reference = self.start or self.least
        if found.target_tokens is None and isinstance(self.spec.batch.gradient_accumulation_steps, tuple):
            # A list of stages fixes the micro-batches of a rank, and so the global batch by their number.
            return (
                None if ranks == reference else "batch: a list of stages makes a global batch for each rank"
            )
        rates = [peak_learning_rate(self.spec.optimizer, n) for n in (reference, ranks)]
        if rates[0] != rates[1]:
            scaling = self.spec.optimizer.learning_rate_scaling
            return (
                f"optimizer.learning_rate_scaling {scaling} makes the learning rate depend on the ranks: set "
                f"it to none, and optimizer.learning_rate to {rates[0]:g}, that of {reference}"
            )
        return None

    @property
    def _end(self) -> int:
        """No more ranks than this can be of use."""
        if self.most is not None:
            return self.most
        total = self.spec.batch.global_batch_size
        return max(self.least, self.start or 1, total or _MANY)

    def _between(self, first: int, last: int) -> Iterator[int]:
        return (n for n in range(first, last + 1) if self.obstacle(n) is None)

    def _nearest(self, wanted: int) -> str:
        total = self.spec.batch.global_batch_size or wanted
        below = [*self._between(1, wanted - 1)][-1:]
        above = [*islice(self._between(wanted + 1, total), 1)]
        found = " and ".join(map(str, below + above))
        return f"the nearest that will do: {found}" if found else "no other number will do"


# Slots of a job whose batch sets no limit.
_MANY = 4096


def keep_global_batch(spec: JobSpec, np: int | None) -> list[str]:
    """Overrides with which the global batch that a spec has on -np ranks stays what it is on others.

    Args:
        spec: of the job.
        np: ranks at the start.

    Raises:
        LaunchError: the global batch depends on the ranks, and their number is not given.
    """
    batch = spec.batch
    steps = batch.gradient_accumulation_steps
    given = batch.global_batch_size is not None or batch.target_tokens_per_update is not None
    if given or isinstance(steps, tuple):
        return []
    assert batch.per_device_train_batch_size is not None  # BatchSpec's validator
    if np is None:
        raise LaunchError(
            "batch.global_batch_size is not given, and follows from the ranks at the start: give it, or -np"
        )
    total = math.prod((np, batch.per_device_train_batch_size, steps or 1))
    return [f"batch.global_batch_size={total}", "batch.gradient_accumulation_steps=null"]
