"""How many updates a run takes, and what each is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.order import global_batches
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.accumulation import Accumulation, BatchSizes, batch_of, resolve_accumulation


@dataclass(frozen=True)
class Updates:
    """The updates of a run.

    Attributes:
        accumulation: what each is made of.
        batch: how the global batch is cut; where it changes, the last stage's, or what is to be expected.
        updates_per_epoch: those that use every training sample once, in the first epoch.
        max_steps: of the whole run.
    """

    accumulation: Accumulation
    batch: BatchSizes
    updates_per_epoch: int
    max_steps: int


def count_updates(spec: JobSpec, train_tokens: NDArray[np.int64], size: int) -> Updates:
    """Count a run's updates.

    Args:
        spec: the job.
        train_tokens: tokens of each sequence of the training split, int64 (at least 1,).
        size: ranks.

    Raises:
        SpecError: the batch does not divide among so many ranks.
    """
    accumulation = resolve_accumulation(spec.batch, size)
    updates_per_epoch = _updates_of(1.0, spec.seed, train_tokens, accumulation)
    epochs = spec.num_train_epochs or 0.0
    max_steps = spec.max_steps or _updates_of(epochs, spec.seed, train_tokens, accumulation)
    batch = batch_of(accumulation, float(np.mean(train_tokens)), max_steps)
    return Updates(accumulation, batch, updates_per_epoch, max_steps)


def _updates_of(epochs: float, seed: int, tokens: NDArray[np.int64], accumulation: Accumulation) -> int:
    if accumulation.target_tokens is None and len(accumulation.stages) == 1:
        return math.ceil(epochs * math.ceil(len(tokens) / batch_of(accumulation, 1.0).global_batch_size))
    wanted = epochs * len(tokens)
    batches = global_batches(seed, tokens, accumulation)
    return next(batch.update for batch in batches if batch.samples_consumed >= wanted)
