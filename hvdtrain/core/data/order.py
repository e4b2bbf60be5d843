"""The order of samples: a function of seed and epoch, cut into updates and among ranks without loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.random import random_words
from hvdtrain.core.update.accumulation import Accumulation

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """Where a run stands: the epoch, from 0, and how many of its samples are used up."""

    epoch: int
    offset: int

    @classmethod
    def after(cls, samples_consumed: int, n_samples: int) -> Position:
        """The position after `samples_consumed` samples of a training set of `n_samples`."""
        return cls(*divmod(samples_consumed, n_samples))


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The samples of one update over all ranks.

    Attributes:
        update: its number, counted from 1.
        epoch: which pass over the training set, from 0.
        indices: samples of the training set, int64, at least one.
        micro_batches: into how many every rank cuts its share.
        samples_consumed: samples used by the run once this update is done; where a resumed run starts.
    """

    update: int
    epoch: int
    indices: Indices
    micro_batches: int
    samples_consumed: int


def epoch_order(seed: int, epoch: int, n_samples: int) -> Indices:
    """A permutation of the samples for one epoch: each gets a random 64-bit word, and they are sorted by it.

    Args:
        seed: the job's seed.
        epoch: from 0.
        n_samples: size of the training set.

    Returns:
        int64 (n_samples,), each sample once.
    """
    return np.argsort(random_words(n_samples, seed, "order", epoch), kind="stable")


def global_batches(
    seed: int,
    tokens: NDArray[np.int64],
    accumulation: Accumulation,
    start_samples: int = 0,
    start_update: int = 1,
    shuffle: bool = True,
) -> Iterator[GlobalBatch]:
    """The batches of a run, for ever; none crosses the end of an epoch, so an epoch's last may be smaller.

    Args:
        seed: the job's seed.
        tokens: of each sample of the training set, int64 (at least 1,).
        accumulation: how many samples an update takes.
        start_samples: samples that were consumed before; 0 starts a run, `samples_consumed` resumes it.
        start_update: number of the first update, counted from 1.
        shuffle: whether the order is random, else that of the training set.

    Yields:
        One global batch an update.
    """
    n_samples, update = len(tokens), start_update
    start = Position.after(start_samples, n_samples)
    epoch, offset = start.epoch, start.offset
    while True:
        order = epoch_order(seed, epoch, n_samples) if shuffle else np.arange(n_samples)
        in_order = tokens[order]
        while offset < n_samples:
            count = accumulation.samples(update, in_order[offset:])
            indices = order[offset : offset + count]
            offset += count
            yield GlobalBatch(
                update, epoch, indices, accumulation.micro_batches(update, count), epoch * n_samples + offset
            )
            update += 1
        epoch, offset = epoch + 1, 0


def rank_share(indices: Indices, rank: int, size: int, accumulation: int, per_device: int) -> list[Indices]:
    """The micro-batches of one rank for one update.

    The batch is cut evenly and contiguously among the ranks (as by `np.array_split`), and a rank's share into
    micro-batches filled one after the other, so a small last batch leaves the last ones short or empty.
    Over all ranks and micro-batches every sample comes exactly once.

    Args:
        indices: the global batch, int64 (at most size * accumulation * per_device,).
        rank: this rank, from 0.
        size: number of ranks.
        accumulation: micro-batches an update.
        per_device: most rows of a micro-batch.

    Returns:
        `accumulation` arrays of at most `per_device` samples.

    Raises:
        ValueError: the batch is larger than all micro-batches together.
    """
    room = size * accumulation * per_device
    if len(indices) > room:
        raise ValueError(
            f"a global batch of {len(indices)} samples does not fit "
            f"{size} ranks x {accumulation} micro-batches x {per_device} rows = {room}"
        )
    share = np.array_split(indices, size)[rank]
    return [share[m * per_device : (m + 1) * per_device] for m in range(accumulation)]
