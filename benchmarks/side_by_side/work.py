"""The work every competitor is given: the same batches, divisors and learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np

from hvdtrain.core.data import Batch, Dataset, Window, train_windows
from hvdtrain.core.families import family_of
from hvdtrain.core.families.family import Family
from hvdtrain.core.families.weights import Weight, initial_weights
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.job import plan_job, prepare_data
from hvdtrain.core.spec.job_spec import JobSpec
from side_by_side.competitors import RANKS

# Batches are used again after so many steps: making them is not what is measured.
_DIFFERENT_STEPS = 32


@dataclass(frozen=True)
class Work:
    """What one rank trains.

    Attributes:
        spec: the job.
        plan: its numbers for `RANKS` ranks of one thread.
        dataset: the prepared data.
        family: the model's.
        windows: this rank's batches.
        divisors: W of each update, over all ranks.
    """

    spec: JobSpec
    plan: Plan
    dataset: Dataset
    family: Family
    windows: tuple[Window, ...]
    divisors: tuple[float, ...]

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The model's weights."""
        return self.family.weights(self.spec.model)

    def initial(self) -> dict[str, np.ndarray]:
        """The initial weights by name, those that the Trainer starts from."""
        return initial_weights(self.weights, self.spec.seed, self.spec.model.dtype)

    def window(self, step: int) -> tuple[Window, float]:
        """This rank's batches and the divisor of an update, counted from 0."""
        index = step % len(self.windows)
        return self.windows[index], self.divisors[index]

    def batch(self, step: int) -> tuple[Batch, float]:
        """As `window`, for those who take its only micro-batch."""
        window, divisor = self.window(step)
        return window.micro_batches[0], divisor


def make_work(spec: JobSpec, rank: int) -> Work:
    """Prepare a rank's work.

    Args:
        spec: the job.
        rank: from 0.

    Returns:
        The same batches for every competitor.
    """
    dataset = prepare_data(spec, announce=lambda text: None)
    family = family_of(spec.model)
    plan = plan_job(spec, family, dataset, RANKS, threads=1)
    of_ranks = [_windows(spec, plan, dataset, r) for r in range(RANKS)]
    divisors = tuple(sum(window.weight for window in step) for step in zip(*of_ranks, strict=True))
    return Work(spec, plan, dataset, family, of_ranks[rank], divisors)


def _windows(spec: JobSpec, plan: Plan, dataset: Dataset, rank: int) -> tuple[Window, ...]:
    windows = train_windows(
        dataset.train,
        seed=spec.seed,
        accumulation=plan.accumulation,
        rank=rank,
    )
    return tuple(islice(windows, _DIFFERENT_STEPS))
